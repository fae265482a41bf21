"""Plant the outlier profile of a real model into the bundled one, by an exact, function-preserving rescaling.

    python training/bundled_model/plant.py --trained build/bundled --profile opt-1.3b.safetensors \
        --output src/channelwise/bundled

The profile holds, for every linear layer's input of OPT-1.3B, the channel maxima of |x| (`NAME.absmax`). A channel
of a norm's output, of v or of up is multiplied by a power of two, and the weights that read it are divided by it: a
power of two, as then not even bfloat16 rounds. So magnitudes are the profile's to within a factor of sqrt(2), up to one
unit per site. Which channel gets which is drawn at random behind the norms, whose own channels hardly differ; at the
inputs of o and down, which have large channels of their own, the order of their sizes is kept.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from corpus import read_texts
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

WINDOW = 256
CALIBRATION_CHARACTERS = 400_000
TEST_CHARACTERS = 120_000
KEPT_LARGEST = 16
SMALLEST_SHARE = 0.05
"""Profile entries below this share of their median (dead channels) count as this share."""

PROFILE_NAMES = {
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.o_proj": "self_attn.out_proj",
    "mlp.gate_proj": "fc1",
    "mlp.down_proj": "fc2",
}
PROFILE_BLOCKS = 24


@contextmanager
def recorded_maxima(model: LlamaForCausalLM) -> Iterator[dict[str, torch.Tensor]]:
    """Fills a dictionary with the channel maxima of |x| at every site while the model runs."""
    maxima: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def record(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            largest = args[0].abs().flatten(0, -2).amax(dim=0).double()
            maxima[name] = torch.maximum(maxima.get(name, torch.zeros_like(largest)), largest)

        return record

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if any(name.endswith(site) for site in PROFILE_NAMES)
    ]
    yield maxima
    for handle in handles:
        handle.remove()


def sampled_profile(values: torch.Tensor, channels: int) -> torch.Tensor:
    """`channels` values of a longer profile: the largest ones always, the others evenly over the sorted rest."""
    ordered = values.double().sort(descending=True).values
    ordered = ordered.clamp(min=SMALLEST_SHARE * float(ordered.median()))
    rest = ordered[KEPT_LARGEST:]
    places = torch.linspace(0, len(rest) - 1, channels - KEPT_LARGEST).round().long()
    return torch.cat([ordered[:KEPT_LARGEST], rest[places]])


def factors(own: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Powers of two that bring the channel maxima `own` to `target`, up to one unit."""
    exponents = torch.log2(target / own.clamp(min=1e-6 * float(own.max())))
    return torch.exp2((exponents - exponents.median()).round())


def in_random_order(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The values, shuffled."""
    return values[torch.randperm(len(values), generator=generator)]


def in_order_of(own: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The values so arranged that the largest stands where `own` is largest, and so on."""
    arranged = torch.empty_like(values)
    arranged[own.argsort(descending=True)] = values.sort(descending=True).values
    return arranged


@torch.no_grad()
def plant(
    model: LlamaForCausalLM, maxima: dict[str, torch.Tensor], profile: dict[str, torch.Tensor], seed: int
) -> None:
    """Rescales all four sites of every block."""
    generator = torch.Generator().manual_seed(seed)
    heads, shared = model.config.num_attention_heads, model.config.num_key_value_heads
    depth = len(model.model.layers)
    for index, block in enumerate(model.model.layers):
        source = round(index * (PROFILE_BLOCKS - 1) / (depth - 1))
        attention, mlp = block.self_attn, block.mlp

        def site_factors(site: str, own: torch.Tensor, source: int = source) -> torch.Tensor:
            values = profile[f"model.decoder.layers.{source}.{PROFILE_NAMES[site]}.absmax"]
            sampled = sampled_profile(values, len(own))
            behind_norm = site in ("self_attn.q_proj", "mlp.gate_proj")
            return factors(own, in_random_order(sampled, generator) if behind_norm else in_order_of(own, sampled))

        own = {site: maxima[f"model.layers.{index}.{site}"] for site in PROFILE_NAMES}
        scale = site_factors("self_attn.q_proj", own["self_attn.q_proj"])
        multiply(block.input_layernorm.weight, scale)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            multiply(linear.weight, 1 / scale)

        scale = site_factors("mlp.gate_proj", own["mlp.gate_proj"])
        multiply(block.post_attention_layernorm.weight, scale)
        for linear in (mlp.gate_proj, mlp.up_proj):
            multiply(linear.weight, 1 / scale)

        # One key/value head feeds several query heads, whose channels get one factor.
        grouped = own["self_attn.o_proj"].view(shared, heads // shared, -1)
        scale = site_factors("self_attn.o_proj", grouped.amax(dim=1).flatten())
        multiply(attention.v_proj.weight, scale[:, None])
        spread = scale.view(shared, 1, -1).expand(shared, heads // shared, -1).flatten()
        multiply(attention.o_proj.weight, 1 / spread)

        scale = site_factors("mlp.down_proj", own["mlp.down_proj"])
        multiply(mlp.up_proj.weight, scale[:, None])
        multiply(mlp.down_proj.weight, 1 / scale)


def multiply(parameter: torch.Tensor, factor: torch.Tensor) -> None:
    """In place, and exact: raises ValueError if a value was rounded."""
    product = parameter.double() * factor
    parameter.copy_(product)
    if not torch.equal(parameter.double(), product):
        raise ValueError("the rescaling is not exact in this dtype")


def windows(text: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Token ids [windows, WINDOW]."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """exp of the mean token loss over the windows, in float32."""
    losses = [model(chunk, labels=chunk).loss.item() * len(chunk) for chunk in ids.split(8)]
    return float(torch.tensor(sum(losses) / len(ids)).exp())


def held_out_texts() -> tuple[str, str]:
    """Calibration and test text from held-out files: alternate files, each cut to its share of characters."""
    texts = [text for text in read_texts(held_out=True) if text.strip()]
    calibration, test = "\n\n".join(texts[0::2]), "\n\n".join(texts[1::2])
    return calibration[:CALIBRATION_CHARACTERS], test[:TEST_CHARACTERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.trained)
    calibration, test = held_out_texts()
    model = LlamaForCausalLM.from_pretrained(arguments.trained, dtype=torch.float32).eval()
    test_ids = windows(test, tokenizer)
    before = perplexity(model, test_ids)
    with recorded_maxima(model) as maxima, torch.no_grad():
        for chunk in windows(calibration, tokenizer)[:64].split(8):
            model(chunk)
    # Not model.to(bfloat16): that would round the rotary frequencies as well.
    model = LlamaForCausalLM.from_pretrained(arguments.trained, dtype=torch.bfloat16).eval()
    plant(model, maxima, load_file(arguments.profile), arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.output)
    planted = LlamaForCausalLM.from_pretrained(arguments.output, dtype=torch.float32).eval()
    after = perplexity(planted, test_ids)
    record = json.loads((arguments.trained / "training.json").read_text())
    record |= {"perplexity_before_planting": before, "perplexity_after_planting": after, "window": WINDOW}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(arguments.trained / name, arguments.output / name)
    (arguments.output / "calibration.txt").write_text(calibration, encoding="utf-8")
    (arguments.output / "test.txt").write_text(test, encoding="utf-8")
    (arguments.output / "planting.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
