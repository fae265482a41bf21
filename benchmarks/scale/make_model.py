"""Writes a random Llama or Mixtral checkpoint, in bfloat16, without ever holding more of it than one shard.

    python benchmarks/scale/make_model.py 7b /tmp/scale/7b
    python benchmarks/scale/make_model.py blocks-4 /tmp/scale/blocks-4
    python benchmarks/scale/make_model.py blocks-4 DIR --hidden 512 --inner 1408 --blocks 8 --shard-size 100

The presets are in shapes.py; every number of one may be given anew. 7b takes 13.5 GB of disk. The tokenizer is that of
the bundled demo model; its 4,096 entries are the first of the vocabulary.

A tensor's values depend on the seed and its name only, not on how the shards are cut. Weights are normal with variance
1 / inputs, so that a layer's outputs have the scale of its inputs; those of o and down are divided by √(2 · blocks), so
that the residual stream stays bounded in any depth. A few channels of the norms are planted as outliers: the norm's
weight is --outlier (20) times as large and the columns behind it as much smaller, which changes no output but makes
the inputs of q, k, v, gate and up what recipes for outlier channels are for.
"""

import argparse
import json
import math
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from shapes import BYTES, PRESETS, Shape
from transformers import GenerationConfig, LlamaConfig, MixtralConfig, PretrainedConfig

TEXTS = ("tokenizer.json", "tokenizer_config.json")
NUMBERS = ("hidden", "inner", "blocks", "heads", "kv_heads", "vocabulary", "experts", "active", "positions")
OUTLIERS = 4
"""Planted channels of each norm."""

BEHIND_A_NORM = re.compile(r"(q_proj|k_proj|v_proj|gate_proj|up_proj|w1|w3|moe\.gate|lm_head)\.weight$")
INTO_THE_STREAM = re.compile(r"(o_proj|down_proj|w2)\.weight$")


@dataclass(frozen=True)
class Drawing:
    """How the values of a checkpoint are drawn."""

    shape: Shape
    seed: int
    outlier: float

    def tensor(self, name: str, size: tuple[int, ...]) -> torch.Tensor:
        """The values of a tensor, bfloat16."""
        if len(size) == 1:
            return self._planted().to(torch.bfloat16)
        generator = torch.Generator().manual_seed(self.seed * 2**32 + zlib.crc32(name.encode()))
        deviation = 1.0 if "embed_tokens" in name else 1 / math.sqrt(size[1])
        if INTO_THE_STREAM.search(name):
            deviation /= math.sqrt(2 * self.shape.blocks)
        values = torch.empty(size, dtype=torch.bfloat16).normal_(0.0, deviation, generator=generator)
        if BEHIND_A_NORM.search(name):
            values /= self._planted().to(torch.bfloat16)
        return values

    def _planted(self) -> torch.Tensor:
        """The factors of the channels behind a norm: the same in all norms, as in trained models; float32 [hidden]."""
        factors = torch.ones(self.shape.hidden)
        generator = torch.Generator().manual_seed(self.seed)
        factors[torch.randperm(self.shape.hidden, generator=generator)[:OUTLIERS]] = self.outlier
        return factors


def tensor_sizes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of all tensors, in the order of the model; a Mixtral's as its own checkpoints name them."""
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for index in range(shape.blocks):
        block = f"model.layers.{index}"
        for layer, outputs in (("q", shape.hidden), ("k", shape.kv_width), ("v", shape.kv_width), ("o", shape.hidden)):
            yield f"{block}.self_attn.{layer}_proj.weight", (outputs, shape.hidden)
        yield from _mlp_sizes(shape, block)
        yield f"{block}.input_layernorm.weight", (shape.hidden,)
        yield f"{block}.post_attention_layernorm.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.vocabulary, shape.hidden)


def _mlp_sizes(shape: Shape, block: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    wide, narrow = (shape.inner, shape.hidden), (shape.hidden, shape.inner)
    if not shape.experts:
        for layer, size in (("gate_proj", wide), ("up_proj", wide), ("down_proj", narrow)):
            yield f"{block}.mlp.{layer}.weight", size
        return
    yield f"{block}.block_sparse_moe.gate.weight", (shape.experts, shape.hidden)
    for expert in range(shape.experts):
        for layer, size in (("w1", wide), ("w2", narrow), ("w3", wide)):
            yield f"{block}.block_sparse_moe.experts.{expert}.{layer}.weight", size


def shards(shape: Shape, largest: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of each shard, at most `largest` bytes of them unless one alone is larger."""
    found: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, size in tensor_sizes(shape):
        needed = BYTES * math.prod(size)
        if found[-1] and filled + needed > largest:
            found.append({})
            filled = 0
        found[-1][name] = size
        filled += needed
    return found


def write_weights(drawing: Drawing, folder: Path, largest: int) -> None:
    """One file after the other, then the index, if there are several."""
    cut = shards(drawing.shape, largest)
    where: dict[str, str] = {}
    for number, sizes in enumerate(cut, 1):
        name = f"model-{number:05}-of-{len(cut):05}.safetensors" if len(cut) > 1 else "model.safetensors"
        print(f"{name} of {len(cut)}", file=sys.stderr)
        save_file({key: drawing.tensor(key, size) for key, size in sizes.items()}, folder / name, {"format": "pt"})
        where |= dict.fromkeys(sizes, name)
    if len(cut) > 1:
        total = sum(BYTES * math.prod(size) for _, size in tensor_sizes(drawing.shape))
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def config_of(shape: Shape) -> PretrainedConfig:
    """The transformers config."""
    numbers: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if shape.experts else "LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "dtype": "bfloat16",
    }
    if shape.experts:
        return MixtralConfig(**numbers, num_local_experts=shape.experts, num_experts_per_tok=shape.active)
    return LlamaConfig(**numbers)


def make_model(shape: Shape, folder: Path, *, seed: int = 0, outlier: float = 20.0, shard_bytes: int = 10**9) -> None:
    """Writes the whole checkpoint; config.json last, so that a half one does not load."""
    folder.mkdir(parents=True)
    write_weights(Drawing(shape, seed, outlier), folder, shard_bytes)
    for name in TEXTS:
        with as_file(files("channelwise") / "bundled" / name) as path:
            shutil.copyfile(path, folder / name)
    config = config_of(shape)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    config.save_pretrained(folder)


def asked_shape(arguments: Mapping[str, object]) -> Shape:
    """The preset with the numbers that are given anew. Raises SystemExit for heads that do not divide."""
    given = {name: arguments[name] for name in NUMBERS if arguments[name] is not None}
    shape = replace(PRESETS[str(arguments["preset"])], **given)  # type: ignore[arg-type]
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads:
        raise SystemExit(f"error: {shape.hidden} channels, {shape.heads} heads and {shape.kv_heads} do not divide")
    return shape


def main() -> None:
    """Writes the model and tells its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    for name in NUMBERS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--outlier", type=float, default=20.0, help="how many times as large; 1 plants none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=1000, help="MB of a file, and of memory")
    arguments = parser.parse_args()
    shape = asked_shape(vars(arguments))
    if arguments.folder.exists():
        raise SystemExit(f"error: {arguments.folder} exists; remove it, or name another folder")
    free = shutil.disk_usage(next(p for p in arguments.folder.resolve().parents if p.exists())).free
    if shape.model_bytes > free:
        raise SystemExit(f"error: {shape.model_bytes / 1e9:.1f} GB do not fit the {free / 1e9:.1f} GB that are free")
    make_model(
        shape,
        arguments.folder,
        seed=arguments.seed,
        outlier=arguments.outlier,
        shard_bytes=arguments.shard_size * 10**6,
    )
    block = shape.block_bytes / 1e6
    print(f"{arguments.folder}: {shape.model_bytes / 1e9:.2f} GB, {shape.blocks} blocks of {block:.1f} MB")


if __name__ == "__main__":
    main()
