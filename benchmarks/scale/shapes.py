"""Shapes of Llama and Mixtral models: their linear layers, sites and bytes, as formulas of a few numbers."""

import json
from dataclasses import dataclass
from pathlib import Path

BYTES = 2
"""Of a number in bfloat16, the dtype of all models here."""


@dataclass(frozen=True)
class SiteShape:
    """Linear layers that read one input of `channels`, with `outputs` features together; `layers` of them, in a block.

    level: as the walk goes. experts: how many such sites a block has; of `experts` a token reaches `active`.
    """

    name: str
    channels: int
    outputs: int
    layers: int
    level: int
    experts: int = 1
    active: int = 1

    @property
    def weights(self) -> int:
        """Of all experts."""
        return self.channels * self.outputs * self.experts

    @property
    def active_weights(self) -> int:
        """Of those that one token reaches."""
        return self.channels * self.outputs * self.active


@dataclass(frozen=True)
class Shape:
    """hidden, inner: channels of the residual stream and between the two halves of the MLP (of one expert).

    heads, kv_heads: of queries, and of keys and values, each of hidden / heads channels. experts: 0 for a Llama;
    otherwise a Mixtral, of whose experts a token reaches `active`.
    """

    hidden: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000
    experts: int = 0
    active: int = 2
    positions: int = 4096

    @property
    def kv_width(self) -> int:
        """Channels of the keys, and of the values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def sites(self) -> tuple[SiteShape, ...]:
        """The sites of one block in the order of the walk; the router is none, as it stays in floating point."""
        experts, active = (self.experts, self.active) if self.experts else (1, 1)
        return (
            SiteShape("q, k, v", self.hidden, self.hidden + 2 * self.kv_width, 3, 0),
            SiteShape("o", self.hidden, self.hidden, 1, 1),
            SiteShape("gate, up", self.hidden, 2 * self.inner, 2, 2, experts, active),
            SiteShape("down", self.inner, self.hidden, 1, 3, experts, active),
        )

    @property
    def block_weights(self) -> int:
        """Numbers in one block: linear layers, router and norms."""
        return sum(site.weights for site in self.sites) + self.experts * self.hidden + 2 * self.hidden

    @property
    def block_bytes(self) -> int:
        """Of one block."""
        return BYTES * self.block_weights

    @property
    def outside_bytes(self) -> int:
        """Of what is outside the blocks: embedding, final norm, output layer (not tied)."""
        return BYTES * self.hidden * (2 * self.vocabulary + 1)

    @property
    def model_bytes(self) -> int:
        """Of all weights."""
        return self.blocks * self.block_bytes + self.outside_bytes

    def hidden_bytes(self, tokens: int) -> int:
        """Of the calibration set's hidden states at one block boundary."""
        return BYTES * self.hidden * tokens


PRESETS = {
    "7b": Shape(4096, 11008, 32, 32, 32),
    "blocks-4": Shape(1024, 2816, 4, 16, 8),
    "blocks-16": Shape(1024, 2816, 16, 16, 8),
    "blocks-64": Shape(1024, 2816, 64, 16, 8),
    "mixtral": Shape(1024, 1792, 8, 16, 8, experts=8),
    "tiny": Shape(128, 384, 2, 4, 2, vocabulary=4096, positions=512),
    "tiny-mixtral": Shape(128, 256, 2, 4, 2, vocabulary=4096, experts=4, positions=512),
    "70b": Shape(8192, 28672, 80, 64, 8, vocabulary=128256),
    "405b": Shape(16384, 53248, 126, 128, 8, vocabulary=128256),
}
"""7b, 70b and 405b are the shapes of Llama 2 7B, Llama 3 70B and Llama 3.1 405B."""


def shape_of(model: Path) -> Shape:
    """The shape in a checkpoint's config.json. Raises SystemExit if it is neither Llama nor Mixtral."""
    config = json.loads((model / "config.json").read_text())
    if config.get("model_type") not in ("llama", "mixtral"):
        raise SystemExit(f"error: {model} is a {config.get('model_type')}; shapes are known of Llama and Mixtral")
    return Shape(
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        blocks=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        vocabulary=config["vocab_size"],
        experts=config.get("num_local_experts", 0),
        active=config.get("num_experts_per_tok", 2),
        positions=config["max_position_embeddings"],
    )
