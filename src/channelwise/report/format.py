"""Numbers as people read them."""

from pathlib import Path

MISSING = "–"


def megabytes(count: int) -> str:
    """Bytes in the largest decimal unit that keeps them above 1: `14.9 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def duration(seconds: float) -> str:
    """`0.8 s`, `12 s`, `200 s`, `12 min 5 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 599.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def number(value: float | None, digits: int) -> str:
    """Fixed decimals for usual sizes, fewer for large ones, an exponent beyond a million, a dash for None."""
    if value is None:
        return MISSING
    if abs(value) >= 1e6:
        return f"{value:.1e}"
    return f"{value:,.{digits if abs(value) < 100 else min(digits, 1)}f}"


def short_path(path: str | Path) -> str:
    """Relative to the working directory where that is shorter."""
    whole = str(path)
    try:
        relative = str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return whole
    return min(relative, whole, key=len)
