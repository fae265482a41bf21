"""Results of a comparison and a profile, made by hand: what pages and tables are given."""

import math
from typing import Any

PLACES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")
BLOCKS = 4

RECIPES: dict[str, tuple[int, int | None, float, float]] = {
    "outliertune-w8a8": (8, 8, 8.13, 1.0006),
    "rtn-w8a8": (8, 8, 8.13, 1.412),
    "outliertune-w6a6": (6, 6, 6.13, 1.012),
    "rtn-w6a6": (6, 6, 6.13, 34.5),
    "llm-fp4-w4a4": (4, 4, 4.25, 1.094),
    "rtn-w4a4": (4, 4, 4.25, 5120.0),
    "gptq-ada-w4g128": (4, None, 4.16, 1.021),
    "gptq-ada-w3g128": (3, None, 3.15, 1.088),
    "rtn-w3g128": (3, None, 3.15, 1.31),
}
"""Bits of weights and inputs, bits per weight, perplexity over the original's."""


def comparison(*, layers: bool = True, speed: bool = True) -> dict[str, Any]:
    """What `compare` returns of an OPT of four blocks; the recipes are those of RECIPES."""
    return {
        "model": {
            "name": "opt-tiny",
            "architecture": "OPTForCausalLM",
            "parameters": 8_600_000,
            "linear_layers": BLOCKS * len(PLACES),
            "blocks": BLOCKS,
        },
        "settings": {
            "data": "calibration.txt",
            "samples": 16,
            "length": 512,
            "seed": 0,
            "device": "cpu",
            "perplexity": "test.txt",
            "perplexity_length": 512,
            "threads": 2,
            "cpu": "a processor",
            "tasks": None,
            "limit": None,
            "versions": {"channelwise": "0.1.0", "torch": "2.11"},
        },
        "fp": {**_results(16.0, 1.0), "tokens_per_second": {"prefill": 900.0, "decode": 30.0}},
        "recipes": {name: _recipe(name, layers, speed) for name in RECIPES},
        "skipped": {"rtn-w2g128": "fc1: groups of 128 do not fit its 64 channels"},
    }


def profile(*, recipe: str | None = "outliertune-w8a8", blocks: int = BLOCKS, channels: int = 64) -> dict[str, Any]:
    """What `evaluation.profile_data` gives: block 1's q, k, v has one channel of 40 times the median."""
    schemes = ["W8A8 static", "W8A8 per token", "W4 g128", *([recipe] if recipe else [])]
    groups = (PLACES[:3], PLACES[3:4], PLACES[4:5], PLACES[5:6])
    return {
        "model": "opt-tiny",
        "facts": {
            "architecture": "OPTForCausalLM",
            "parameters": 8_600_000,
            "blocks": blocks,
            "linear_layers": blocks * len(PLACES),
        },
        "recipe": recipe,
        "schemes": schemes,
        "settings": {"data": "calibration.txt", "samples": 16, "seed": 0, "device": "cpu", "version": "0.1.0"},
        "sites": [_site(block, group, schemes, recipe, channels) for block in range(blocks) for group in groups],
    }


def _results(bits: float, ratio: float) -> dict[str, Any]:
    return {
        "perplexity": 28.1 * ratio,
        "perplexity_ratio": ratio,
        "tokens": 35_731,
        "length": 512,
        "seconds": 12.0,
        "model_bytes": round(8_600_000 * (bits + 2.0) / 8),
        "bits_per_weight": bits,
    }


def _recipe(name: str, layers: bool, speed: bool) -> dict[str, Any]:
    weights, inputs, bits, ratio = RECIPES[name]
    return {
        **_results(bits, ratio),
        "quantize_seconds": 12.5 + bits,
        "summary": f"What {name} does",
        "paper": "",
        "weights_bits": weights,
        "inputs_bits": inputs,
        "cached": False,
        "error": None,
        "speed_over_fp": {"prefill": 1.0 + weights / 20, "decode": 16 / bits / 2} if speed else None,
        "layers": _layers(name) if layers else [],
        "sites": [],
    }


def _layers(name: str) -> list[dict[str, Any]]:
    weights, inputs, bits, ratio = RECIPES[name]
    base = (ratio - 1.0) / 50
    return [
        {
            "name": f"model.decoder.layers.{block}.{place}",
            "block": block,
            "site": f"model.decoder.layers.{block}.{PLACES[0] if index < 3 else place}",
            "kind": "stream" if index in (0, 1, 2, 4) else "inner",
            "shape": [64, 64],
            "bits_per_weight": bits,
            "weights": f"int{weights} row_group 128",
            "inputs": None if inputs is None else f"int{inputs} static",
            "relative_error": base * (1 + index) * (1 + 0.3 * math.sin(block)),
            "choices": {
                "direction": "ic" if (index + block) % 2 else "oc",
                "threshold": 1.5 * block + index,
                "exponents": {"largest": 3, "mean": 0.5 * index},
            },
        }
        for block in range(BLOCKS)
        for index, place in enumerate(PLACES)
    ]


def _site(block: int, places: tuple[str, ...], schemes: list[str], recipe: str | None, channels: int) -> dict[str, Any]:
    prefix = f"model.decoder.layers.{block}"
    largest = 80.0 if (block, places) == (1, PLACES[:3]) else 3.0
    maxima = [2.0 + 0.5 * math.sin(channel) for channel in range(channels)]
    minima = [-value for value in maxima]
    minima[7] = -largest
    return {
        "block": block,
        "name": f"{prefix}.{places[0]}",
        "linears": [f"{prefix}.{place}" for place in places],
        "kind": "stream" if places[0] in ("self_attn.q_proj", "fc1") else "inner",
        "channels": channels,
        "tokens": 8192,
        "largest": largest,
        "median": 2.0,
        "ratio": largest / 2.0,
        "asymmetry": 0.97 if largest > 10 else 0.2,
        "folds_into": f"{prefix}.self_attn_layer_norm" if len(places) == 3 else None,
        "folds_shift": len(places) == 3,
        "reason": "" if len(places) == 3 else "the site's input is not proportional to its output",
        "minima": minima,
        "maxima": maxima,
        "after": None
        if recipe is None
        else {
            "largest": 127.0,
            "median": 127.0,
            "ratio": 1.0,
            "asymmetry": 0.0,
            "shift": True,
            "scale": True,
            "notes": {"shift": "center"},
            "minima": [-127.0] * channels,
            "maxima": [127.0] * channels,
        },
        "layers": [
            {
                "name": f"{prefix}.{place}",
                "shape": [64, channels],
                "errors": {
                    scheme: 1e-4 * (1 + index) * (largest if scheme == "W8A8 static" else 1.0)
                    for index, scheme in enumerate(schemes)
                },
            }
            for place in places
        ],
    }
