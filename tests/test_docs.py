"""What the documentation says of recipes and commands is true, and it builds without a warning."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from channelwise.cli.app import app
from channelwise.recipe import load_recipe, recipe_names
from tests.conftest import IN_CI

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# Pages of commands for users; those of the results stand beside the figures that they printed.
GUIDES = [ROOT / "README.md", DOCS / "index.md", *sorted((DOCS / "use").glob("*.md")), *METHOD_PAGES]

# `rtn-w8a8`, `llm-fp4-gptq-w4a16`, `awq-w3g128`: what is written like a recipe's name.
RECIPE = re.compile(r"(?<![\w/.-])[a-z][a-z0-9-]*-w\d(?:a\d+)?(?:g\d+)?(?![\w-])")
# How directories of models begin that are called after a recipe.
DIRECTORIES = ("my-", "opt-", "vit-", "demo-")
ROW = re.compile(r"^\| `(\S+)` \| (.+) \|$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def rows(path: Path) -> dict[str, str]:
    """Recipes of a method's page, with what the page says of them."""
    return dict(ROW.findall(text(path).partition("\n## Recipes\n")[2]))


def commands(path: Path) -> list[str]:
    """The program's calls in the page's blocks, without comments and variable parts."""
    lines = "\n".join(block.replace("\\\n", " ") for _, block in BLOCK.findall(text(path))).splitlines()
    return [line.strip() for line in lines if line.startswith("channelwise ") and "…" not in line]


def test_every_recipe_is_on_one_methods_page() -> None:
    listed = [recipe for page in METHOD_PAGES for recipe in rows(page)]
    assert sorted(listed) == sorted(recipe_names())


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_a_methods_page_says_of_its_recipes_what_they_say_themselves(page: Path) -> None:
    found = rows(page)
    assert found
    assert found == {recipe: load_recipe(recipe).summary for recipe in found}


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_a_methods_page_names_the_paper_of_its_recipes(page: Path) -> None:
    papers = {load_recipe(recipe).paper for recipe in rows(page)}
    linked = re.findall(r"\]\(https://arxiv\.org/abs/([\d.]+)\)", text(page))
    assert {f"arXiv:{number}" for number in linked} == papers - {None}


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_a_methods_page_has_its_sections_and_no_figures_of_its_own(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", text(page), flags=re.MULTILINE)
    assert headings == ["What it does", "When to choose it", "In a recipe", "Recipes", "What we measured"]
    measured = text(page).partition("\n## What we measured\n")[2]
    assert "(../results.md" in measured
    assert not re.search(r"\d\.\d", measured)


@pytest.mark.parametrize("page", METHOD_PAGES, ids=name)
def test_what_a_methods_page_shows_of_a_recipe_is_valid(page: Path) -> None:
    shown = [yaml.safe_load(block) for language, block in BLOCK.findall(text(page)) if language == "yaml"]
    assert shown
    recipe = load_recipe(next(iter(rows(page))))
    for part in shown:
        load_recipe({**recipe.model_dump(mode="json"), **part})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_recipe_that_is_named_exists(page: Path) -> None:
    named = {found for quoted in re.findall(r"`([^`\n]+)`", text(page)) for found in RECIPE.findall(quoted)}
    named |= {found for _, block in BLOCK.findall(text(page)) for found in RECIPE.findall(block)}
    assert {found for found in named if not found.startswith(DIRECTORIES)} <= set(recipe_names())


@pytest.mark.parametrize("page", [page for page in GUIDES if commands(page)], ids=name)
def test_every_command_is_one_that_the_program_takes(page: Path) -> None:
    verbs: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in commands(page):
        _, verb, *arguments = shlex.split(command.partition(" > ")[0], comments=True)
        # Parses like the program does, and raises for what the verb does not know or lacks.
        verbs[verb].make_context(verb, arguments)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        (pytest.fail if IN_CI else pytest.skip)("the documentation's tools are not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    settings = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    fetched = [page for page in pages if re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?://", text(page))]
    assert not fetched
