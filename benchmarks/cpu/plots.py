"""Plots of what the benchmarks measured, as SVG files for the documentation.

    python benchmarks/cpu/linears.py --rows 1,128,512 --shapes 4096x4096,11008x4096 --json linears.json
    python benchmarks/cpu/models.py --recipes bf16,w8a8,w4a8,w4,w3 --json models.json
    python benchmarks/cpu/plots.py --linears linears.json --models models.json --output docs/images

linears.svg: speed over bf16 F.linear of one layer by its number of rows. bandwidth.svg: the share of the read bandwidth
of the same run at one row. models.svg: a whole model's prefill and decoding over bf16. Needs matplotlib, which
`pip install "channelwise[docs]"` brings.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

SHOWN = ("int4pack-g128", "qlinear", "w8a8-static", "w4a8-static", "w4a4-fp4", "w4-oc", "w4-ic", "w3-oc", "w2-oc")
BANDWIDTH = ("bf16", "qlinear", "int4pack-g128", "w8a8-static", "w6a6-static", "w4a8-static", "w4-oc", "w3-oc", "w2-oc")
SHADES = ("#56b4e9", "#0072b2", "#004166")
"""For colour-blind readers told apart by lightness."""

STYLE = {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}


def plot_linears(measured: dict[str, Any], shape: list[int], path: Path) -> None:
    """Bars of speed over bf16, a colour for every number of rows."""
    cases = [case for case in measured["cases"] if case["shape"] == shape]
    names = [name for name in SHOWN if all(name in case["candidates"] for case in cases)]
    figure, axes = pyplot.subplots(figsize=(7.5, 3.4), layout="constrained")
    width = 0.8 / len(cases)
    for index, case in enumerate(cases):
        speeds = [case["candidates"][name]["speed_over_bf16"] for name in names]
        places = [place + (index - (len(cases) - 1) / 2) * width for place in range(len(names))]
        label = "1 row" if case["rows"] == 1 else f"{case['rows']} rows"
        axes.bar(places, speeds, width, color=SHADES[index % len(SHADES)], label=label)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axes.set_ylabel("speed over bf16 F.linear")
    axes.set_title(f"({shape[0]}, {shape[1]}), {_where(measured)}", fontsize=9)
    axes.legend(frameon=False)
    _saved(figure, path)


def plot_bandwidth(measured: dict[str, Any], path: Path) -> None:
    """Bars of the share of the read bandwidth at one row."""
    cases = [case for case in measured["cases"] if case["rows"] == 1]
    names = [name for name in BANDWIDTH if all(name in case["candidates"] for case in cases)]
    figure, axes = pyplot.subplots(figsize=(7.5, 3.2), layout="constrained")
    width = 0.8 / len(cases)
    for index, case in enumerate(cases):
        shares = [100 * case["candidates"][name]["share_of_read"] for name in names]
        places = [place + (index - (len(cases) - 1) / 2) * width for place in range(len(names))]
        axes.bar(places, shares, width, color=SHADES[index % len(SHADES)], label=str(tuple(case["shape"])))
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axes.set_ylabel("% of the read bandwidth")
    axes.set_title(f"1 row, {_where(measured)}", fontsize=9)
    axes.legend(frameon=False)
    _saved(figure, path)


def plot_models(measured: dict[str, Any], path: Path) -> None:
    """Bars of prefill and decoding over bf16."""
    models = measured["models"]
    base, names = models["bf16"], [name for name in models if name != "bf16"]
    figure, axes = pyplot.subplots(figsize=(5.5, 3.0), layout="constrained")
    for index, (key, label) in enumerate((("prefill", "prefill, 512 tokens"), ("decode", "decoding"))):
        speeds = [models[name][key]["tokens_s"] / base[key]["tokens_s"] for name in names]
        places = [place + (index - 0.5) * 0.38 for place in range(len(names))]
        bars = axes.bar(places, speeds, 0.38, color=SHADES[index], label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("tokens per second over bf16")
    axes.legend(frameon=False)
    _saved(figure, path)


def _where(measured: dict[str, Any]) -> str:
    about = measured["machine"]
    return f"{about['threads']} threads, {about['kernels'].upper()}, torch {about['torch']}"


def _saved(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    print(path)


def main() -> None:
    """Draws what there are figures for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linears", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    mpl.rcParams.update(STYLE)
    if asked.linears:
        measured = json.loads(asked.linears.read_text(encoding="utf-8"))
        plot_linears(measured, measured["cases"][0]["shape"], asked.output / "linears.svg")
        plot_bandwidth(measured, asked.output / "bandwidth.svg")
    if asked.models:
        plot_models(json.loads(asked.models.read_text(encoding="utf-8")), asked.output / "models.svg")


if __name__ == "__main__":
    main()
