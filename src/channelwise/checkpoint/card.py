"""The model card, README.md beside the weights: what it is, where it comes from, how to load it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAPERS = {
    "outliertune": "OutlierTune, arXiv:2406.18832",
    "os_plus": "Outlier Suppression+, arXiv:2304.09145",
    "awq": "AWQ, arXiv:2306.00978",
    "gptq": "GPTQ, arXiv:2210.17323",
    "ada": "AdaDim, arXiv:2309.15531",
    "smoothquant": "SmoothQuant, arXiv:2211.10438",
    "llm_fp4": "LLM-FP4, arXiv:2310.16836",
}
"""Methods by the name that recipes call them, and where they are from."""


@dataclass(frozen=True)
class CardFacts:
    """What the card tells. source: name or directory of the original model; bytes: of all weight files together."""

    source: str
    architecture: str
    recipe: Mapping[str, Any]
    linears: int
    bits_per_weight: float
    bytes: int
    has_tokenizer: bool
    embeddings: int = 0
    bits_per_embedding: float = 0.0


def model_card(facts: CardFacts) -> str:
    """The card's text, Markdown with the hub's header."""
    source = Path(facts.source).name
    title = f"{source} quantized by {facts.recipe.get('name', 'channelwise')}"
    parts = [_header(facts), f"# {title}", _about(facts, source), _loading(facts)]
    parts.append("What was chosen for every layer, and what it lost, is in `quantization_record.json`.")
    parts.append(f"## Recipe\n```json\n{json.dumps(facts.recipe, indent=2, ensure_ascii=False)}\n```")
    return "\n\n".join(parts) + "\n"


def _header(facts: CardFacts) -> str:
    lines = ["---", "library_name: transformers", "tags: [channelwise, quantized]"]
    is_hub_name = facts.source.count("/") == 1 and not Path(facts.source).exists()
    if is_hub_name:
        lines.append(f"base_model: {json.dumps(facts.source)}")
    return "\n".join([*lines, "---"])


def _about(facts: CardFacts, source: str) -> str:
    lines = [
        f"- Original model: {source} ({facts.architecture})",
        f"- Quantized linear layers: {facts.linears}, {facts.bits_per_weight:.2f} bits per weight with their scales",
    ]
    if facts.embeddings:
        bits = f"{facts.bits_per_embedding:.2f} bits per weight with their scales"
        lines.append(f"- Quantized embeddings: {facts.embeddings}, {bits}")
    lines.append(f"- Weight files: {facts.bytes / 1e6:.1f} MB")
    if summary := facts.recipe.get("summary"):
        lines.append(f"- Recipe: {summary}")
    papers = _papers(facts.recipe)
    if papers:
        lines.append(f"- Method: {'; '.join(papers)}")
    return "\n".join(lines)


def _loading(facts: CardFacts) -> str:
    loaded = "model, tokenizer" if facts.has_tokenizer else "model, _"
    return "\n".join(
        [
            "## Loading",
            "```python",
            "import channelwise",
            "",
            f'{loaded} = channelwise.load("DIRECTORY")',
            "```",
            f"After `import channelwise`, `transformers.{facts.architecture}.from_pretrained` works too. Without that",
            "import transformers only warns of an unknown quantization and **initialises linear layers at random**.",
        ]
    )


def _papers(recipe: Mapping[str, Any]) -> list[str]:
    """The papers of the methods that the recipe names, and the one it names itself."""
    text = json.dumps(recipe)
    papers = [paper for method, paper in PAPERS.items() if f'"{method}"' in text]
    own = recipe.get("paper")
    if own and not any(str(own) in paper for paper in papers):
        papers.append(str(own))
    return papers
