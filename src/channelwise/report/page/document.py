"""From a template and plain data to one HTML document that needs nothing else: no network, no other file."""

import json
import math
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from channelwise.report.format import duration, megabytes, number


def render(template: str, data: Mapping[str, Any], **context: Any) -> str:
    """The page of a template in `templates/`, everything from `context` escaped.

    data: what the page's scripts read, JSON-able; numbers that are not finite become null.
    """
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("channelwise.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, duration=duration, megabytes=megabytes, percent=percent, significant=significant
    )
    return environment.get_template(template).render(
        **context, data=script_json(data), plotly=Markup(get_plotlyjs()), source=_source_of(environment)
    )


def script_json(data: Any) -> Markup:
    """JSON that may stand inside a script element, whatever the names in it are."""
    text = json.dumps(_finite(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def percent(share: float | None) -> str:
    """Two significant digits at least, however small: `12 %`, `0.034 %`, `1.2e-6 %`."""
    return "–" if share is None else f"{significant(100 * share)} %"


def significant(value: float | None) -> str:
    """Two significant digits, more before the point: `0.034`, `1.2`, `12`, `1,234`, `1.2e-06`."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}"
    if abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.2g}"


def _source_of(environment: Environment) -> Any:
    """`source("page.css")`: a file of `templates/` as it is."""

    def source(name: str) -> Markup:
        assert environment.loader is not None
        return Markup(environment.loader.get_source(environment, name)[0])

    return source


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
