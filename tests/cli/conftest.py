"""The command line in this process, and tiny models and texts for it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from channelwise.cli import process
from tests.cli import tiny


@dataclass(frozen=True)
class Run:
    """How one call of the program ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, which on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """`run("quantize", model, "--recipe", ...)`: the program without a new process."""

    def call(*arguments: object) -> Run:
        capsys.readouterr()
        status = process.run([str(argument) for argument in arguments])
        return Run(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def llama_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.llama(), tiny.byte_tokenizer(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def bert_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.bert(), tiny.word_tokenizer(), tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def llama(llama_source: Path, tmp_path: Path) -> Path:
    """A tiny Llama's directory that the test may spoil."""
    return Path(shutil.copytree(llama_source, tmp_path / "llama"))


@pytest.fixture
def bert(bert_source: Path, tmp_path: Path) -> Path:
    """A tiny BERT's directory that the test may spoil."""
    return Path(shutil.copytree(bert_source, tmp_path / "bert"))


@pytest.fixture(scope="session")
def vit_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny.saved(tiny.vit(), None, tmp_path_factory.mktemp("models") / "vit")
    tiny.image_processor().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def classifier_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "classifier"
    return tiny.saved(tiny.bert_classifier(), tiny.word_tokenizer(), directory)


@pytest.fixture
def vit(vit_source: Path, tmp_path: Path) -> Path:
    """A tiny image classifier's directory that the test may spoil; its labels are circle, square, star."""
    return Path(shutil.copytree(vit_source, tmp_path / "vit"))


@pytest.fixture
def classifier(classifier_source: Path, tmp_path: Path) -> Path:
    """A tiny sequence classifier's directory that the test may spoil; its labels are dog, cat, house."""
    return Path(shutil.copytree(classifier_source, tmp_path / "classifier"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images in three labelled sub-folders."""
    return tiny.image_folder(tmp_path / "images", ["circle", "square", "star"] * 4)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Forty sentences labelled dog or cat."""
    path = tmp_path / "animals.tsv"
    lines = [f"{sentence}\t{'cat' if 'cat' in sentence else 'dog'}" for sentence in tiny.sentences(40)]
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Some thousand tokens."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(tiny.sentences(200)), encoding="utf-8")
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Forty sentences whose label says whether a cat is in them."""
    path = tmp_path / "labelled.tsv"
    lines = [f"{sentence}\t{int('cat' in sentence)}" for sentence in tiny.sentences(40)]
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def quantized(llama: Path, text: Path, tmp_path: Path, run: Callable[..., Run]) -> Path:
    """A quantized model's directory."""
    output = tmp_path / "quantized"
    done = run("quantize", llama, "--recipe", "rtn-w8a8", "--data", text, "--output", output, "--samples", 4)
    assert done.status == 0, done.stderr
    return output
