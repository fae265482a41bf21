"""What mkdocs does beyond its settings: help of the verbs, fields of classes, and links that lead out of docs/."""

import re
from functools import cache
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
HELP_MARK = "<!-- every verb's --help -->"
FIELDS_MARK = re.compile(r"^<!-- fields of (\S+) -->$", re.MULTILINE)

# Files of the repository that become pages, because pages link to them.
OUTSIDE = {"src/channelwise/bundled/README.md": "reference/bundled-model.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere in the repository."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links out of docs/ to their pages, and fills in what is marked: help of the verbs, fields of a class."""
    for source, target in OUTSIDE.items():
        markdown = markdown.replace(f"](../{source})", f"]({target})")
    markdown = FIELDS_MARK.sub(lambda mark: _fields(mark[1]), markdown)
    return markdown.replace(HELP_MARK, _help()) if HELP_MARK in markdown else markdown


def _fields(path: str) -> str:
    """The fields of a pydantic class with types and defaults, which mkdocstrings shows for plain dataclasses only."""
    found = _package()[path.removeprefix("channelwise.")]
    assert isinstance(found, griffe.Class)
    lines = []
    for name, member in {**found.inherited_members, **found.members}.items():
        field = member.final_target if isinstance(member, griffe.Alias) else member
        if isinstance(field, griffe.Attribute) and field.annotation and name != "model_config":
            lines.append(f"{name}: {field.annotation}{'' if field.value is None else f' = {field.value}'}")
    return "\n".join(["```python", *lines, "```"])


@cache
def _package() -> griffe.Module:
    """The package, read without importing it."""
    package = griffe.load("channelwise", search_paths=[ROOT / "src"])
    assert isinstance(package, griffe.Module)
    return package


def _help() -> str:
    """A section with the --help of each verb, in the program's order."""
    import typer

    from channelwise.cli.app import app

    group = typer.main.get_command(app)
    parent = group.make_context("channelwise", [], resilient_parsing=True)
    sections = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        with command.make_context(name, [], parent=parent, resilient_parsing=True) as context:
            sections.append(f"## {name}\n\n```\n{command.get_help(context)}\n```")
    return "\n\n".join(sections)
