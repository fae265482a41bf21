"""A real browser, and pages opened in it with everything written down that a reader should never meet."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import IN_CI

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120_000
"""Milliseconds before a step counts as hanging; a busy machine takes its time."""


@dataclass(frozen=True)
class Opened:
    """A page, what its console said (errors and warnings), and what it asked of the network."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def wait_for(self, expression: str) -> None:
        """Waits until an expression is true. The page forbids what playwright's own waiting does, to evaluate texts."""
        end = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            self.page.wait_for_timeout(50)

    def settle(self) -> None:
        """Waits until the charts that stand on the page have been drawn."""
        self.wait_for("[...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('.main-svg'))")

    def values(self, table: str, column: int) -> list[str]:
        """The texts of a column of a table's last body."""
        rows = "[...[...document.getElementById(id).tBodies].at(-1).rows]"
        script = f"([id, column]) => {rows}.map((row) => row.cells[column].innerText.trim())"
        return self.page.evaluate(script, [table, column])

    def sticks_out(self) -> int:
        """By how many pixels the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def cut_texts(self) -> list[str]:
        """Texts of charts that reach beyond their chart."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('.chart')].flatMap((chart) => {
                const frame = chart.getBoundingClientRect();
                return [...chart.querySelectorAll('svg text')].filter((text) => {
                    const box = text.getBoundingClientRect();
                    return box.width > 0 && (box.left < frame.left - 1 || box.right > frame.right + 1
                        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1);
                }).map((text) => `${chart.id}: ${text.textContent}`);
            })"""
        )


def _refuse(reason: str) -> Any:
    (pytest.fail if IN_CI else pytest.skip)(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, the system's own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _refuse('no playwright here; install it with pip install "channelwise[test]" to test the pages')
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        _refuse("no Chromium here; install one (on Debian: apt install chromium) to test the pages")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def opened(browser: Any) -> Iterator[Callable[..., Opened]]:
    """`opened(file, width=1280, scheme="light")`: the page, from the file, offline."""
    contexts = []

    def open_page(file: Path, width: int = 1280, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda m: found.complaints.append(m.text) if m.type in ("error", "warning") else None)
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(file.as_uri())
        found.settle()
        return found

    yield open_page
    for context in contexts:
        context.close()
