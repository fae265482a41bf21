"""llm-compressor's side of `llm_compressor.py`, run by the Python of the peer's own environment.

    PEER/bin/python benchmarks/peers/run_llm_compressor.py JOB.json

JOB.json: model (a directory), dtype, threads, tokens (.safetensors with input_ids int64 [samples, length]), batch_size,
sequential_targets (null: llm-compressor's own), peer (GPTQModifier's settings), output. Writes the dequantized weights
of all quantized layers, float32, to `output`, the seconds of the quantization in its metadata. Only the call of Oneshot
is timed, after one untimed call on the first batch; loading, imports and saving are not.
"""

import copy
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import dequantize, quantize
from llmcompressor.entrypoints.oneshot import Oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM


def modifier(peer: dict[str, Any]) -> GPTQModifier:
    """GPTQ of all linear layers but the output's; embeddings are none of them. Weights only."""
    weights = {
        "num_bits": peer["bits"],
        "type": "int",
        "symmetric": peer["symmetric"],
        "strategy": "group",
        "group_size": peer["group_size"],
        "actorder": "static" if peer["act_order"] else None,
        "observer": "memoryless_minmax",
    }
    return GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
        ignore=["lm_head"],
        block_size=peer["block"],
        dampening_frac=peer["damping"],
        actorder=weights["actorder"],
    )


def quantized(model: torch.nn.Module, ids: torch.Tensor, job: dict[str, Any]) -> tuple[float, list[str]]:
    """Quantizes the model in place; wall seconds, and the layers that were rounded to nearest as GPTQ failed."""
    recipe = modifier(job["peer"])
    # Without an attention mask, as we do without one: no sample is padded.
    batches: Any = DataLoader([{"input_ids": row} for row in ids], batch_size=job["batch_size"], shuffle=False)
    oneshot = Oneshot(model=model, recipe=recipe, dataset=batches, sequential_targets=job["sequential_targets"])
    started = time.perf_counter()
    oneshot()
    return time.perf_counter() - started, list(recipe._rtn_fallback_module_names)


@torch.no_grad()
def dequantized(layer: Any) -> torch.Tensor:
    """Values of the codes and of the scales as a checkpoint stores them (in the model's dtype), float32.

    The layer itself holds them rounded once more, to the model's dtype.
    """
    scale, arguments = layer.weight_scale.float(), layer.quantization_scheme.weights
    codes = quantize(layer.weight.float(), scale, layer.weight_zero_point, arguments)
    return dequantize(codes, scale, layer.weight_zero_point, arguments, dtype=torch.float32).contiguous()


def main() -> None:
    """One job: warm up, quantize, save."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=job["dtype"], local_files_only=True).eval()
    ids = load_file(job["tokens"])["input_ids"]
    quantized(copy.deepcopy(model), ids[: job["batch_size"]], job)
    seconds, fallbacks = quantized(model, ids, job)
    weights = {name: dequantized(m) for name, m in model.named_modules() if hasattr(m, "weight_scale")}
    versions = {name: version(name) for name in ("llmcompressor", "compressed-tensors", "transformers", "torch")}
    about = {"seconds": seconds, "versions": versions, "rounded_to_nearest": fallbacks}
    save_file(weights, job["output"], metadata={"about": json.dumps(about)})


if __name__ == "__main__":
    main()
