"""What the environment says of a launch in several processes; nothing here needs torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from channelwise.errors import InputError

HINT = "start all processes by `torchrun --nproc-per-node N -m channelwise quantize …`"
"""What to do, for messages."""
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """What the environment says of this process's place."""

    rank: int
    local_rank: int
    size: int
    address: str
    port: int
    run: str
    """Tells this run from others that use the same store."""
    agent: bool
    """Whether the launcher keeps the store; otherwise rank 0 does."""

    @property
    def store_address(self) -> str:
        """For messages."""
        return f"{self.address}:{self.port}"


def is_launched(environ: Mapping[str, str]) -> bool:
    """Whether this is one of several processes that were started together. One alone is as good as none."""
    return environ.get("WORLD_SIZE", "").strip() not in ("", "1") or environ.get("RANK", "").strip() not in ("", "0")


def launch_of(environ: Mapping[str, str]) -> Launch | None:
    """The launch that the environment describes, None if it says nothing of one; InputError if it is incomplete."""
    given = [name for name in _VARIABLES if environ.get(name, "").strip()]
    if not given:
        return None
    missing = [name for name in _VARIABLES if name not in given]
    if missing:
        raise InputError(
            f"{_listed(given)} set in the environment, but not {' and '.join(missing)}: {HINT}, "
            f"or unset {' '.join(given)} to run in one process"
        )
    size, port = _number(environ, "WORLD_SIZE", 1, None), _number(environ, "MASTER_PORT", 1, 65535)
    return Launch(
        rank=_number(environ, "RANK", 0, size - 1),
        local_rank=_number(environ, "LOCAL_RANK", 0, size - 1),
        size=size,
        address=environ["MASTER_ADDR"].strip(),
        port=port,
        run=f"{environ.get('TORCHELASTIC_RUN_ID', '')}/{environ.get('TORCHELASTIC_RESTART_COUNT', '')}",
        agent=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _listed(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _number(environ: Mapping[str, str], name: str, least: int, most: int | None) -> int:
    text = environ[name].strip()
    if text.isascii() and text.isdigit() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    wanted = f"{least} or more" if most is None else f"{least} to {most}"
    beyond = f", WORLD_SIZE is {environ['WORLD_SIZE'].strip()}" if name.endswith("RANK") else ""
    raise InputError(f"{name}={text} in the environment should be {wanted}{beyond}: {HINT}")
