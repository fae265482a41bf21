"""Bad input ends with status 2 and one line that says what and what to do; nothing is written."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from channelwise.checkpoint import working, writer
from tests.cli import tiny
from tests.cli.conftest import Run

Refused = Callable[..., str]


@pytest.fixture
def refused(run: Callable[..., Run], text: Path, tmp_path: Path) -> Refused:
    """Quantizes what must be refused before the walk, and returns the one line; a later option overrides an earlier."""
    output = tmp_path / "out"

    def call(model: object, *options: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        done = run("quantize", model, "--recipe", "rtn-w8a8", "--data", text, "--output", output, *options)
        assert (done.status, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert sorted(tmp_path.rglob("*")) == before
        return done.stderr

    return call


def changed_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class TestModels:
    def test_not_a_model_directory(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "config.json" in refused(tmp_path / "empty")

    def test_no_such_directory(self, refused: Refused, tmp_path: Path) -> None:
        assert "nowhere" in refused(tmp_path / "nowhere")

    def test_unknown_architecture_class(self, refused: Refused, llama: Path) -> None:
        changed_config(llama, architectures=["FutureForCausalLM"])
        assert "FutureForCausalLM" in refused(llama)

    def test_no_linear_layers(self, refused: Refused, tmp_path: Path) -> None:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
        assert "linear" in refused(tiny.saved(transformers.ResNetModel(config), None, tmp_path / "resnet"))

    def test_weights_with_nan_end_the_walk_at_their_block(
        self, run: Callable[..., Run], text: Path, tmp_path: Path
    ) -> None:
        """Blocks are read when their turn comes; what was finished before is of no use then."""
        model = tiny.llama()
        model.model.layers[1].mlp.up_proj.weight.data[3, 4] = torch.nan
        source = tiny.saved(model, tiny.byte_tokenizer(), tmp_path / "nan")
        before = sorted(tmp_path.rglob("*"))
        done = run("quantize", source, "--recipe", "rtn-w8a8", "--data", text, "--output", tmp_path / "out")
        assert (done.status, done.stdout) == (2, "")
        assert "layers.1.mlp.up_proj" in done.stderr.splitlines()[-1]
        assert sorted(tmp_path.rglob("*")) == before

    def test_truncated_weights(self, refused: Refused, llama: Path) -> None:
        weights = llama / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert "model.safetensors" in refused(llama)

    def test_a_tokenizer_of_another_model(self, refused: Refused, tmp_path: Path) -> None:
        small = tiny.llama(vocab_size=100)
        assert "100" in refused(tiny.saved(small, tiny.byte_tokenizer(), tmp_path / "small"))

    def test_no_tokenizer(self, refused: Refused, tmp_path: Path) -> None:
        assert "tokenizer" in refused(tiny.saved(tiny.llama(), None, tmp_path / "bare"))

    def test_already_quantized(self, refused: Refused, quantized: Path) -> None:
        assert "already quantized" in refused(quantized)


class TestTexts:
    def test_missing(self, refused: Refused, llama: Path) -> None:
        assert "no such file" in refused(llama, "--data", "missing.txt")

    def test_empty(self, refused: Refused, llama: Path, tmp_path: Path) -> None:
        assert "empty" in refused(llama, "--data", written(tmp_path / "empty.txt", "\n"))

    def test_fewer_tokens_than_a_window(self, refused: Refused, llama: Path, tmp_path: Path) -> None:
        line = refused(llama, "--data", written(tmp_path / "tiny.txt", "the cat sees the dog."))
        assert "tokens, fewer than one window of 64" in line

    @pytest.mark.parametrize(("content", "place"), [(b"text\0text", "byte 4"), (b"text\xff\xfe", "offset 4")])
    def test_binary(self, refused: Refused, llama: Path, tmp_path: Path, content: bytes, place: str) -> None:
        assert place in refused(llama, "--data", written(tmp_path / "binary.txt", content))

    def test_a_line_without_the_field(self, refused: Refused, llama: Path, tmp_path: Path) -> None:
        path = written(tmp_path / "texts.jsonl", '{"text": "the cat"}\n{"body": "the dog"}\n')
        assert "line 2" in refused(llama, "--data", path)

    def test_a_window_beyond_the_models_positions(self, refused: Refused, llama: Path) -> None:
        assert "64 positions" in refused(llama, "--length", 65)

    def test_no_samples(self, refused: Refused, llama: Path) -> None:
        assert "--samples" in refused(llama, "--samples", 0)


class TestImages:
    """Of calibration and of evaluation; what can be wrong with them is told in tests/model and tests/evaluation."""

    def test_broken_files(self, refused: Refused, vit: Path, images: Path) -> None:
        written(images / "star" / "002.png", b"\x89PNG")
        line = refused(vit, "--data", images)
        assert "1 of 12 images" in line and "002.png" in line

    def test_an_empty_folder(self, refused: Refused, vit: Path, tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        assert "no images" in refused(vit, "--data", tmp_path / "none")

    def test_a_missing_npz(self, refused: Refused, vit: Path) -> None:
        assert "no such folder or file: gone.npz" in refused(vit, "--data", "gone.npz")

    def test_a_text_for_an_image_model(self, refused: Refused, vit: Path) -> None:
        assert "reads images" in refused(vit)

    def test_images_for_a_language_model(self, refused: Refused, llama: Path, images: Path) -> None:
        assert "reads no images" in refused(llama, "--data", images)

    def test_no_image_processor(self, refused: Refused, vit: Path, images: Path) -> None:
        (vit / "preprocessor_config.json").unlink()
        assert "preprocessor_config.json" in refused(vit, "--data", images)

    def test_labels_unknown_to_the_model(self, run: Callable[..., Run], vit: Path, images: Path) -> None:
        (images / "star").rename(images / "triangle")
        done = run("evaluate", vit, "--images", images)
        assert (done.status, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert "sub-folder triangle" in done.stderr and "circle, square, star" in done.stderr


class TestRecipes:
    def test_unknown(self, refused: Refused, llama: Path) -> None:
        assert "outliertune-w6a6" in refused(llama, "--recipe", "outliertune-w6")

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("weights:", "wights:", "wights"),
            ("bits: 8", "bits: 9", "bits"),
            ("granularity: output_channel", "granularity: diagonal", "granularity"),
            ("granularity: output_channel", "granularity: group, group_size: 48", "48"),
        ],
    )
    def test_wrong_content(
        self, refused: Refused, llama: Path, run: Callable[..., Run], tmp_path: Path, old: str, new: str, said: str
    ) -> None:
        content = run("recipes", "rtn-w8a8").stdout
        assert old in content
        assert said in refused(llama, "--recipe", written(tmp_path / "mine.yaml", content.replace(old, new)))

    def test_not_yaml(self, refused: Refused, llama: Path, tmp_path: Path) -> None:
        assert "not YAML" in refused(llama, "--recipe", written(tmp_path / "mine.yaml", "a: [1"))


class TestOutputs:
    def test_exists(self, refused: Refused, llama: Path, quantized: Path) -> None:
        assert "--overwrite" in refused(llama, "--output", quantized)

    def test_overwrite_does_not_remove_what_is_no_model(self, refused: Refused, llama: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        written(tmp_path / "mine" / "notes.txt", "precious")
        assert "no model" in refused(llama, "--output", tmp_path / "mine", "--overwrite")

    def test_below_a_file(self, refused: Refused, llama: Path, text: Path) -> None:
        assert "is a file" in refused(llama, "--output", text / "out")

    def test_not_writable(self, refused: Refused, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Tests may run as root, to whom every directory is writable.
        monkeypatch.setattr(writer.os, "access", lambda path, mode: False)
        assert "not writable" in refused(llama)

    def test_no_space_left(
        self, run: Callable[..., Run], llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(working, "write_weight_file", full)
        before = sorted(tmp_path.iterdir())
        options = ("--recipe", "rtn-w8a8", "--data", text, "--output", tmp_path / "out", "--samples", 2)
        done = run("quantize", llama, *options)
        assert done.status == 2
        assert done.stderr.splitlines()[-1].startswith("error: no space left")
        assert sorted(tmp_path.iterdir()) == before

    def test_overwrite_replaces_a_model(
        self, run: Callable[..., Run], llama: Path, text: Path, quantized: Path
    ) -> None:
        options = ("--recipe", "rtn-w6a6", "--data", text, "--output", quantized, "--samples", 2, "--overwrite")
        assert run("quantize", llama, *options).status == 0
        assert "rtn-w6a6" in (quantized / "config.json").read_text()


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("frob",), "frob"),
            (("quantize", "demo", "--frob"), "--frob"),
            (("quantize", "demo"), "--recipe"),
            (("generate", "demo", "--prompt", "x", "--max-tokens", "0"), "--max-tokens"),
            (("recipes", "outliertune"), "outliertune-w8a8"),
            (("evaluate", "demo"), "--perplexity"),
            (("evaluate", "demo"), "--images"),
        ],
    )
    def test_one_line(self, run: Callable[..., Run], arguments: tuple[str, ...], said: str, llama: Path) -> None:
        done = run(*(str(llama) if argument == "demo" else argument for argument in arguments))
        assert done.status == 2
        assert said in done.stderr and done.stderr.count("\n") == 1

    def test_device_that_is_not_there(self, refused: Refused, llama: Path) -> None:
        assert "device" in refused(llama, "--device", "abacus")

    def test_perplexity_of_an_encoder(self, run: Callable[..., Run], bert: Path, text: Path) -> None:
        done = run("evaluate", bert, "--perplexity", text)
        assert done.status == 2 and "--embeddings" in done.stderr

    def test_embeddings_need_the_original(self, run: Callable[..., Run], bert: Path, labelled: Path) -> None:
        assert "--against" in run("evaluate", bert, "--embeddings", labelled).stderr

    def test_perplexity_of_a_classifier(self, run: Callable[..., Run], classifier: Path, text: Path) -> None:
        done = run("evaluate", classifier, "--perplexity", text)
        assert done.status == 2 and "--classification" in done.stderr

    def test_classification_by_a_language_model(self, run: Callable[..., Run], llama: Path, animals: Path) -> None:
        done = run("evaluate", llama, "--classification", animals)
        assert done.status == 2 and "no sequence classifier" in done.stderr

    def test_classification_labels_unknown_to_the_model(
        self, run: Callable[..., Run], classifier: Path, labelled: Path
    ) -> None:
        labelled.write_text(labelled.read_text().replace("\t1\n", "\thorse\n"))
        line = run("evaluate", classifier, "--classification", labelled).stderr
        assert "labelled.tsv, line " in line and "'horse'" in line and "dog, cat, house" in line

    def test_compare_refuses_one_bad_recipe_before_any_work(
        self, run: Callable[..., Run], llama: Path, text: Path
    ) -> None:
        done = run("compare", llama, "--recipes", "rtn-w8a8,rtn-w8", "--data", text, "--perplexity", text)
        assert (done.status, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1

    def test_an_unforeseen_error_has_status_1_and_a_traceback_only_with_debug(
        self, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken() -> None:
            raise RuntimeError("broken inside")

        monkeypatch.setattr("channelwise.recipe.recipe_names", broken)
        done = run("recipes")
        assert done.status == 1 and done.stderr.count("\n") == 1
        assert "Traceback" in run("recipes", "--debug").stderr

    def test_generate_refuses_a_prompt_that_fills_the_model(self, run: Callable[..., Run], llama: Path) -> None:
        done = run("generate", llama, "--prompt", "the cat " * 100)
        assert done.status == 2 and "shorter prompt" in done.stderr

    def test_a_damaged_checkpoint(self, run: Callable[..., Run], quantized: Path) -> None:
        shutil.copyfile(quantized / "config.json", quantized / "model.safetensors")
        assert run("generate", quantized, "--prompt", "the").status == 2
