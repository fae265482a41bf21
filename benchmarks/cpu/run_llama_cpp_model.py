"""A whole Llama in llama.cpp, run by `models_llama_cpp.py`.

    PEER/bin/python benchmarks/cpu/run_llama_cpp_model.py < JOB.json

The job, JSON: action "make" with path and the model's sizes writes random weights as a BF16 GGUF without a tokenizer;
"quantize" with path, output and type is llama.cpp's own quantization, its defaults for the embedding and the output;
"time" with path, threads, prompt, new and rounds prints seconds of every prefill and of every decoding.
"""

import ctypes
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from runner import read_job

SHORT_PROMPT = 8


def make(job: dict[str, Any]) -> None:
    """Writes the model, tensor by tensor in llama.cpp's names."""
    hidden, inner, vocabulary = job["hidden_size"], job["intermediate_size"], job["vocab_size"]
    heads, cached = job["num_attention_heads"], job["num_key_value_heads"]
    random, keys = np.random.default_rng(0), hidden // heads * cached
    writer = gguf.GGUFWriter(job["path"], "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_block_count(job["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(cached)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) / columns**0.5
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        writer.add_tensor(f"{name}.weight", bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    matrix("token_embd", vocabulary, hidden)
    for block in range(job["num_hidden_layers"]):
        ones(f"blk.{block}.attn_norm")
        ones(f"blk.{block}.ffn_norm")
        for name, rows in (("attn_q", hidden), ("attn_k", keys), ("attn_v", keys), ("attn_output", hidden)):
            matrix(f"blk.{block}.{name}", rows, hidden)
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            matrix(f"blk.{block}.ffn_{name}", rows, columns)
    ones("output_norm")
    matrix("output", vocabulary, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(job: dict[str, Any]) -> None:
    """llama-quantize's work."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{job['type']}")
    if llama_cpp.llama_model_quantize(job["path"].encode(), job["output"].encode(), ctypes.byref(parameters)):
        raise SystemExit("llama_model_quantize failed")


def timed(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds per prefill and per decoding, one untimed round before."""
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(job["path"].encode(), settings)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 2048, job["prompt"], job["prompt"]
    settings.n_threads = settings.n_threads_batch = job["threads"]
    context = llama_cpp.llama_init_from_model(model, settings)
    memory = llama_cpp.llama_get_memory(context)

    def decode(tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (job["vocab_size"],))
        return int(logits.argmax())

    prefills, decodings = [], []
    for _ in range(job["rounds"] + 1):
        llama_cpp.llama_memory_clear(memory, True)
        started = time.perf_counter()
        decode(list(range(job["prompt"])))
        prefills.append(time.perf_counter() - started)
        llama_cpp.llama_memory_clear(memory, True)
        token = decode(list(range(SHORT_PROMPT)))
        started = time.perf_counter()
        for _ in range(job["new"] - 1):
            token = decode([token])
        decodings.append(time.perf_counter() - started)
    return {"prefill": prefills[1:], "decode": decodings[1:], "bytes": Path(job["path"]).stat().st_size}


def main() -> None:
    """One job."""
    job = read_job()
    llama_cpp.llama_backend_init()
    actions = {"make": make, "quantize": quantize, "time": timed}
    found = actions[job["action"]](job) or {}
    json.dump({**found, "version": version("llama-cpp-python")}, sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
