"""Train a small ViT on scikit-learn's digits, on a CPU, and give it a profile of real outliers to be planted.

Run from the repository's root; takes three to four minutes:

    python -m training.digits_vit train --output tests/fixtures/digits_vit
    python -m training.digits_vit plant --profile opt-125m.safetensors --output tests/fixtures/digits_vit
    python -m training.digits_vit measure --model tests/fixtures/digits_vit

A ViT this small has no outlier channels. `plant` writes `outliers.json`: for both norms of every block, a power of two
for each channel that brings its maximum to that of a real model's channel. `digits_vit_with_outliers` in
tests/fixtures/digits.py applies them, exactly: the norm's channel is multiplied, the weights that read it are divided.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from channelwise.numerics.grids import FloatGrid
from tests.fixtures.digits import OUTLIERS_FILE, digits_part, digits_vit_with_outliers

STEPS = 2000
BATCH = 128
RATE = 4e-3
LOWEST_RATE_SHARE = 0.01
WARMUP_STEPS = 100
NOISE = 0.05
"""Standard deviation of the noise on the pixels, which are from -1 to 1."""
SHIFT = 1
"""Images are moved by up to this many pixels each way."""

MEAN = STD = 0.5
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": False,
    "size": {"height": 8, "width": 8},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [MEAN],
    "image_std": [STD],
}

PROFILE_NAMES = {"layernorm_before": "self_attn.q_proj", "layernorm_after": "fc1"}
FIRST_READERS = {"layernorm_before": "attention.q_proj", "layernorm_after": "mlp.fc1"}
PROFILE_BLOCKS = 12
CALIBRATION_IMAGES = 512

Images = NDArray[np.uint8]


def model_config() -> ViTConfig:
    """0.3 M parameters: 6 blocks of width 64, 4 heads, 16 patches of 2×2 pixels."""
    return ViTConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=8,
        patch_size=2,
        num_channels=1,
        # The usual 0.02 is for larger widths; with it training starts slowly here.
        initializer_range=0.06,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )


def pixel_values(images: torch.Tensor) -> torch.Tensor:
    """What the image processor makes of uint8 [N, 8, 8]: float32 [N, 1, 8, 8] from -1 to 1."""
    return (images[:, None].float() / 255 - MEAN) / STD


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to SHIFT pixels each way, dark where nothing was."""
    count, height, width = images.shape
    padded = nn.functional.pad(images, (SHIFT,) * 4)
    moves = torch.randint(2 * SHIFT + 1, (count, 2), generator=generator)
    rows = moves[:, 0, None] + torch.arange(height)
    columns = moves[:, 1, None] + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def learning_rate_factor(step: int) -> float:
    """Linear warm-up, then a cosine."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / STEPS))
    return max(min(1.0, (step + 1) / WARMUP_STEPS) * cosine, LOWEST_RATE_SHARE)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, labels: NDArray[np.int64]) -> float:
    logits = model(pixel_values=pixel_values(torch.from_numpy(images))).logits
    return (logits.argmax(dim=-1) == torch.from_numpy(labels)).float().mean().item()


def train_model(images: Images, labels: NDArray[np.int64], seed: int) -> ViTForImageClassification:
    """STEPS of AdamW without weight decay, on batches drawn with replacement."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    all_images, all_labels = torch.from_numpy(images), torch.from_numpy(labels)
    model = ViTForImageClassification(model_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * learning_rate_factor(step)
        chosen = torch.randint(len(all_labels), (BATCH,), generator=generator)
        pixels = pixel_values(shifted(all_images[chosen], generator))
        pixels += NOISE * torch.randn(pixels.shape, generator=generator)
        loss = nn.functional.cross_entropy(model(pixel_values=pixels).logits, all_labels[chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}/{STEPS} loss {loss.item():.4f}", flush=True)
    return model.eval()


def load_model(folder: Path) -> ViTForImageClassification:
    """In float32, so that what is measured is not bfloat16's arithmetic."""
    return ViTForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of all blocks, by name."""
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, nn.Linear) and ".layers." in name}


@contextmanager
def before_linears(model: nn.Module, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """`change(name, input)` sees, and may replace, the input of every linear layer of a block."""

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor | None]:
        return lambda _, args: change(name, args[0])

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in block_linears(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def channel_maxima(model: nn.Module, images: Images) -> dict[str, torch.Tensor]:
    """Of |x| at the input of every linear layer, float32 [channels]."""
    maxima: dict[str, torch.Tensor] = {}

    def record(name: str, x: torch.Tensor) -> None:
        maxima[name] = x.abs().flatten(0, -2).amax(dim=0)

    with before_linears(model, record):
        model(pixel_values=pixel_values(torch.from_numpy(images)))
    return maxima


def sampled_profile(values: torch.Tensor, channels: int) -> torch.Tensor:
    """`channels` values of a longer profile, evenly over its sorted entries, the largest and the smallest among them.

    So the ratio of the largest to the median is the profile's.
    """
    ordered = values.double().sort(descending=True).values
    places = torch.linspace(0, len(ordered) - 1, channels).round().long()
    return ordered[places]


def exponents(own: torch.Tensor, target: torch.Tensor) -> list[int]:
    """Of the powers of two that bring the channel maxima `own` to `target`, up to one unit."""
    wanted = torch.log2(target / own.double())
    return (wanted - wanted.median()).round().int().tolist()


def planted_exponents(
    maxima: dict[str, torch.Tensor], profile: dict[str, torch.Tensor], seed: int
) -> dict[str, list[list[int]]]:
    """For both norms: for every block, an exponent for each channel; which channel gets which entry is random."""
    generator = torch.Generator().manual_seed(seed)
    depth = model_config().num_hidden_layers
    planted: dict[str, list[list[int]]] = {norm: [] for norm in PROFILE_NAMES}
    for index in range(depth):
        source = round(index * (PROFILE_BLOCKS - 1) / (depth - 1))
        for norm, site in PROFILE_NAMES.items():
            own = maxima[f"vit.layers.{index}.{FIRST_READERS[norm]}"]
            target = sampled_profile(profile[f"model.decoder.layers.{source}.{site}.absmax"], len(own))
            shuffled = target[torch.randperm(len(target), generator=generator)]
            planted[norm].append(exponents(own, shuffled))
    return planted


def nearest_e2m1(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """The nearest value of E2M1 whose largest value is `largest` (> 0, broadcastable)."""
    grid = FloatGrid(2, 1)
    positive = (grid.positive_values() / grid.largest_value).float()
    middles = (positive[1:] + positive[:-1]) / 2
    return positive[torch.bucketize((x / largest).abs(), middles)] * x.sign() * largest


@torch.no_grad()
def minmax_fp4_accuracy(folder: Path, calibration: Images, images: Images, labels: NDArray[np.int64]) -> float:
    """With E2M1 from the minima and maxima: weights per output channel, inputs per tensor and static."""
    model = load_model(folder)
    largest = {name: maxima.max() for name, maxima in channel_maxima(model, calibration).items()}
    for linear in block_linears(model).values():
        linear.weight.copy_(nearest_e2m1(linear.weight, linear.weight.abs().amax(dim=1, keepdim=True)))
    with before_linears(model, lambda name, x: nearest_e2m1(x, largest[name])):
        return accuracy(model, images, labels)


def print_figures(folder: Path) -> None:
    """Accuracy, outlier ratios per block, and what plain 4-bit quantization costs."""
    calibration = digits_part("train")[0][:CALIBRATION_IMAGES]
    test = digits_part("test")
    model = load_model(folder)
    maxima = channel_maxima(model, calibration)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, test accuracy {accuracy(model, *test):.4f}")
    for site in ("attention.q_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"):
        ratios = [float(m.max() / m.median()) for name, m in maxima.items() if name.endswith(site)]
        print(f"largest channel over median channel, input of {site}: {' '.join(f'{r:.1f}' for r in ratios)}")
    print(f"test accuracy with min-max E2M1 weights and inputs: {minmax_fp4_accuracy(folder, calibration, *test):.4f}")


def train(arguments: argparse.Namespace) -> None:
    """Writes the model, in bfloat16, and the image processor's settings."""
    began = time.time()
    model = train_model(*digits_part("train"), arguments.seed)
    print(
        f"trained in {time.time() - began:.0f} s; test accuracy in float32 {accuracy(model, *digits_part('test')):.4f}"
    )
    model.to(torch.bfloat16).save_pretrained(arguments.output)
    settings = json.dumps(PREPROCESSOR, indent=2) + "\n"
    (arguments.output / "preprocessor_config.json").write_text(settings, encoding="utf-8")


def plant(arguments: argparse.Namespace) -> None:
    """Writes the exponents beside the model."""
    model = load_model(arguments.output)
    maxima = channel_maxima(model, digits_part("train")[0][:CALIBRATION_IMAGES])
    planted = planted_exponents(maxima, load_file(arguments.profile), arguments.seed)
    lines = [
        f'  "{norm}": [\n    ' + ",\n    ".join(map(json.dumps, blocks)) + "\n  ]" for norm, blocks in planted.items()
    ]
    (arguments.output / OUTLIERS_FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def measure(arguments: argparse.Namespace) -> None:
    """Prints the figures of the model as it is and with its outliers planted."""
    print_figures(arguments.model)
    with TemporaryDirectory() as scratch:
        print("\nwith planted outliers")
        print_figures(digits_vit_with_outliers(Path(scratch), arguments.model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    training = verbs.add_parser("train")
    training.add_argument("--output", type=Path, required=True)
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(run=train)
    planting = verbs.add_parser("plant")
    planting.add_argument("--profile", type=Path, required=True)
    planting.add_argument("--output", type=Path, required=True)
    planting.add_argument("--seed", type=int, default=0)
    planting.set_defaults(run=plant)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("--model", type=Path, required=True)
    measuring.set_defaults(run=measure)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
