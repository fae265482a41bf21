"""README.md of an exported directory: what it is and how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

WHAT = {
    "compressed-tensors": "a quantized model in the format of compressed-tensors",
    "fp": "a floating-point model whose channels were evened out for quantization",
}


def export_card(
    architecture: str, recipe: Mapping[str, Any], form: str, notes: Sequence[str], has_tokenizer: bool
) -> str:
    """The card's text, Markdown with the hub's header. architecture: the model's class in transformers."""
    tags = "[channelwise, quantized, compressed-tensors]" if form != "fp" else "[channelwise]"
    parts = [
        f"---\nlibrary_name: transformers\ntags: {tags}\n---",
        f"# {architecture}, {recipe.get('name', 'channelwise')}",
        f"This is {WHAT[form]}, exported by channelwise. Recipe: {recipe.get('summary', recipe.get('name', '–'))}.",
        _loading(architecture, form, has_tokenizer),
    ]
    if notes:
        parts.append("## Notes\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _loading(architecture: str, form: str, has_tokenizer: bool) -> str:
    lines = [f"from transformers import {architecture}" + (", AutoTokenizer" if has_tokenizer else ""), ""]
    lines.append(f'model = {architecture}.from_pretrained("DIRECTORY")')
    if has_tokenizer:
        lines.append('tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")')
    code = "\n".join(["## Loading", "```python", *lines, "```"])
    if form == "fp":
        return code + "\nIt computes what the original does, in float32: folding into 16 bits would round the weights."
    return code + (
        "\nThis needs `pip install compressed-tensors`. The model says float32: in 16 bits the library would round the "
        "scales, and the codes of inputs, to 16 bits, too."
    )
