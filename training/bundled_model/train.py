"""Train the bundled model: a small Llama on the Python standard library's source, on a CPU or a GPU.

Run from the repository's root, in the background:

    python training/bundled_model/train.py --output build/bundled --tokens 12000000

The run writes a checkpoint every `--save-every` steps and goes on from it when started again.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from corpus import read_texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
WINDOW = 256
BATCH = 32
WARMUP_STEPS = 40
MUON_RATE = 0.02
ADAM_RATE = 3e-3
DECAY_SHARE = 0.4


def model_config() -> LlamaConfig:
    """7.3 M parameters: 8 blocks of width 256, 8 query heads over 4 key/value heads, tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `<|end|>` as its only special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def tokenize(texts: list[str], tokenizer: PreTrainedTokenizerFast, seed: int) -> torch.Tensor:
    """All texts in a shuffled order as one stream of ids [tokens], an end token after each."""
    order = list(texts)
    random.Random(seed).shuffle(order)
    end = tokenizer.eos_token_id
    encoded = tokenizer._tokenizer.encode_batch(order)
    return torch.tensor([i for text in encoded for i in [*text.ids, end]], dtype=torch.int32)


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, a plateau, then a linear decay over the last `DECAY_SHARE` of the steps."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    remaining = (steps - step) / (steps * DECAY_SHARE)
    return min(1.0, max(0.02, remaining))


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, Adam for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def window_batch(stream: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Token ids [BATCH, WINDOW + 1] from random places of the stream."""
    starts = torch.randint(len(stream) - WINDOW - 1, (BATCH,), generator=generator)
    return torch.stack([stream[s : s + WINDOW + 1] for s in starts]).long()


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: torch.Tensor, device: str) -> float:
    """Mean token loss over the first 64 windows of the held-out stream."""
    windows = stream[: 64 * WINDOW].view(64, WINDOW).long().to(device)
    losses = []
    for chunk in windows.split(16):
        with torch.autocast(device, torch.bfloat16):
            losses.append(model(chunk, labels=chunk).loss.float().item())
    return sum(losses) / len(losses)


def train(arguments: argparse.Namespace) -> None:
    """The whole run: tokenizer, stream, optimization, checkpoints, final bf16 model."""
    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    texts = read_texts(held_out=False)
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(output)
    stream = tokenize(texts, tokenizer, arguments.seed)
    held_out = tokenize(read_texts(held_out=True), tokenizer, arguments.seed)
    print(f"{len(stream):,} training tokens, {len(held_out):,} held out, on {device}", flush=True)

    model = LlamaForCausalLM(model_config()).to(device)
    optimizers = make_optimizers(model)
    steps = math.ceil(arguments.tokens / (BATCH * WINDOW))
    state_file = output / "training_state.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    base_rates = [MUON_RATE, ADAM_RATE]
    began = time.time()
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
        ids = window_batch(stream, generator).to(device)
        for optimizer, base in zip(optimizers, base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * learning_rate_factor(step, steps)
        with torch.autocast(device, torch.bfloat16):
            logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0 or step + 1 == steps:
            speed = (step + 1 - first) * BATCH * WINDOW / (time.time() - began)
            print(f"step {step}/{steps} loss {loss.item():.4f} {speed:,.0f} tokens/s", flush=True)
        if (step + 1) % arguments.save_every == 0 or step + 1 == steps:
            print(f"held-out loss {held_out_loss(model, held_out, device):.4f}", flush=True)
            state = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "step": step + 1,
            }
            torch.save(state, state_file)
    model.to("cpu", torch.bfloat16).save_pretrained(output)
    record = {"tokens_seen": steps * BATCH * WINDOW, "distinct_tokens": len(stream), "seed": arguments.seed}
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=12_000_000)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
