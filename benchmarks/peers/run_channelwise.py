"""Our side of `llm_compressor.py`, in a process of its own.

    python benchmarks/peers/run_channelwise.py JOB.json

JOB.json and what is written are those of `run_llm_compressor.py`, with the whole `recipe`. Only the walk is timed,
after one untimed walk over the first batch.
"""

import copy
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from channelwise.engine.walk import quantize_model
from channelwise.model.batches import calibration_batches
from channelwise.model.loading import load_model
from channelwise.recipe import load_recipe
from channelwise.runtime.linear import QuantizedLinear


def main() -> None:
    """One job: warm up, quantize, save."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    model, _ = load_model(job["model"], job["dtype"])
    ids = load_file(job["tokens"])["input_ids"]
    batches = calibration_batches(ids, None, model, samples=len(ids), length=ids.shape[1], seed=0)
    assert len(batches[0]["input_ids"]) == job["batch_size"]
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), ids)
    plan = load_recipe(job["recipe"]).to_plan()
    quantize_model(copy.deepcopy(model), batches[:1], plan)
    started = time.perf_counter()
    quantize_model(model, batches, plan)
    seconds = time.perf_counter() - started
    weights = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            assert layer.transform.is_identity, f"{name} has a transformed input: its weight alone is not the layer"
            weights[name] = layer.dequantized_weight().contiguous()
    about = {"seconds": seconds, "versions": {name: version(name) for name in ("channelwise", "transformers", "torch")}}
    save_file(weights, job["output"], metadata={"about": json.dumps(about)})


if __name__ == "__main__":
    main()
