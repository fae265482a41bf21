"""The few instructions of PTX that the kernels use, on numbers of 32 bits (PTX ISA, logic and prmt)."""

import re
from collections.abc import Callable

WORD = 0xFFFFFFFF


def prmt(low: int, high: int, selector: int) -> int:
    """Four of the eight bytes of two words, each picked by a digit of the selector's lower half; bit 3 is not used."""
    assert selector & 0x8888 == 0
    bytes_ = [(word >> (8 * place)) & 0xFF for word in (low, high) for place in range(4)]
    return sum(bytes_[(selector >> (4 * place)) & 7] << (8 * place) for place in range(4))


def lop3(a: int, b: int, c: int, table: int) -> int:
    """Bit by bit: what the table has for the bits of a, b and c, at 4 · a + 2 · b + c."""
    places = range(32)
    return sum(((table >> (4 * (a >> n & 1) + 2 * (b >> n & 1) + (c >> n & 1))) & 1) << n for n in places)


INSTRUCTIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "shr.b32": lambda a, b: a >> b,
    "shr.u32": lambda a, b: a >> b,
    "shl.b32": lambda a, b: (a << b) & WORD,
    "prmt.b32": prmt,
    "lop3.b32": lop3,
}


def run(code: str, *inputs: int) -> int:
    """What the code leaves in $0 when $1, $2, … hold the inputs."""
    return run_all(code, *inputs)[0]


def run_all(code: str, *inputs: int, outputs: int = 1) -> list[int]:
    """What the code leaves in $0, $1, … when those behind them hold the inputs."""
    registers = {f"${place}": value for place, value in enumerate(inputs, outputs)}
    for statement in re.sub(r"[{}]|\.reg[^;]*;", "", code).split(";"):
        if not statement.strip():
            continue
        name, arguments = statement.split(maxsplit=1)
        target, *sources = (part.strip() for part in arguments.split(","))
        values = [registers[source] if source in registers else int(source, 0) for source in sources]
        registers[target] = INSTRUCTIONS[name](*values) & WORD
    return [registers[f"${place}"] for place in range(outputs)]
