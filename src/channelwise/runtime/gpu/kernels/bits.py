"""Packed codes in registers: bits cut out of four bytes at once, codes looked up.

What PTX does for four bytes in one instruction, Triton says for one byte at a time, and the compiler does not find the
way back; hence the assembly. Triton's interpreter knows no assembly and takes the sentence beside it, which says the
same.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether the functions here were defined for Triton's interpreter."""

ALL_BYTES = 0x01010101


@triton.constexpr_function
def _cut(shift, mask):
    """PTX: (x >> shift) & mask in each of four bytes; what a neighbour shifts in is masked away."""
    if shift == 0:
        return f"and.b32 $0, $1, {mask * ALL_BYTES:#x};"
    moved = f"shr.b32 t, $1, {shift};" if shift > 0 else f"shl.b32 t, $1, {-shift};"
    return f"{{ .reg .b32 t; {moved} and.b32 $0, t, {mask * ALL_BYTES:#x}; }}"


@triton.constexpr_function
def _look_up(exponent_bits, mantissa_bits):
    """PTX: the whole numbers (int8) that four 4-bit codes in bytes stand for, signed indices from −7 plus 7.

    The codes become the digits of a selector of prmt.b32, which picks bytes out of eight; bit 3 chooses between the
    lower and the upper eight entries of the table.
    """
    magnitudes = [_magnitude(index, exponent_bits, mantissa_bits) for index in range(8)]
    table = [-magnitudes[7 - code] for code in range(7)] + magnitudes + [0]
    words = [sum((table[4 * word + place] & 0xFF) << (8 * place) for place in range(4)) for word in range(4)]
    return (
        "{ .reg .b32 a, b, s, low, high;"
        " shr.u32 a, $1, 4; or.b32 a, a, $1; prmt.b32 s, a, 0, 0x4420;"  # one digit for each byte
        " and.b32 a, s, 0x7777;"
        f" mov.b32 b, {words[1]:#x}; mov.b32 low, {words[0]:#x}; prmt.b32 low, low, b, a;"
        f" mov.b32 b, {words[3]:#x}; mov.b32 high, {words[2]:#x}; prmt.b32 high, high, b, a;"
        " shr.u32 s, s, 1; and.b32 s, s, 0x4444; or.b32 s, s, 0x3210; prmt.b32 $0, low, high, s; }"
    )


@triton.constexpr_function
def _magnitude(index, exponent_bits, mantissa_bits):
    """The non-negative lattice value of this index (`FloatGrid.positive_values`) in units of the smallest one."""
    exponent = max(index >> mantissa_bits, 1)
    return (index - ((exponent - 1) << mantissa_bits)) << (exponent - 1)


@triton.jit
def cut(packed, shift: tl.constexpr, mask: tl.constexpr):
    """(packed >> shift) & mask of each byte, uint8; a negative shift moves to the left."""
    if INTERPRETED:
        return ((packed.to(tl.int32) >> shift if shift >= 0 else packed.to(tl.int32) << -shift) & mask).to(tl.uint8)
    return tl.inline_asm_elementwise(_cut(shift, mask), "=r,r", [packed], dtype=tl.uint8, is_pure=True, pack=4)


@triton.jit
def either(one, other):
    """The bits of both, uint8."""
    if INTERPRETED:
        return one | other
    return tl.inline_asm_elementwise("or.b32 $0, $1, $2;", "=r,r,r", [one, other], dtype=tl.uint8, is_pure=True, pack=4)


@triton.jit
def looked_up(codes, EXPONENT_BITS: tl.constexpr, MANTISSA_BITS: tl.constexpr):
    """The lattice values, int8, of 4-bit codes 0 … 14 of a floating-point grid, its signed indices plus 7."""
    if INTERPRETED:
        signed = codes.to(tl.int32) - 7
        index = tl.abs(signed)
        exponent = tl.maximum(index >> MANTISSA_BITS, 1)
        magnitude = (index - ((exponent - 1) << MANTISSA_BITS)) << (exponent - 1)
        return tl.where(signed < 0, -magnitude, magnitude).to(tl.int8)
    return tl.inline_asm_elementwise(
        _look_up(EXPONENT_BITS, MANTISSA_BITS), "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4
    )


@triton.jit
def code(packed, second, third, BITS: tl.constexpr, STRAND: tl.constexpr):
    """The codes of a strand, uint8: `layout.pack_strands` says how they lie in one byte, or in three."""
    if BITS == 4:
        return cut(packed, 4 * STRAND, 15)
    if BITS == 2:
        return cut(packed, 2 * STRAND, 3)
    if BITS == 6:
        if STRAND == 0:
            return cut(packed, 0, 63)
        if STRAND == 1:
            return cut(second, 0, 63)
        if STRAND == 2:
            return cut(third, 0, 63)
        return either(cut(packed, 6, 3), either(cut(second, 4, 12), cut(third, 2, 48)))
    if STRAND < 2:
        return cut(packed, 3 * STRAND, 7)
    if STRAND < 4:
        return cut(second, 3 * STRAND - 6, 7)
    if STRAND < 6:
        return cut(third, 3 * STRAND - 12, 7)
    if STRAND == 6:
        return either(cut(packed, 6, 3), cut(second, 4, 4))
    return either(cut(second, 7, 1), cut(third, 5, 6))


@triton.jit
def values(packed, second, third, BITS: tl.constexpr, EXPONENT_BITS: tl.constexpr, STRAND: tl.constexpr):
    """The codes of a strand as int8, with 8 bits the values that the bytes are; looked up where a grid is given."""
    if BITS == 8:
        return packed
    found = code(packed, second, third, BITS, STRAND)
    if EXPONENT_BITS > 0:
        return looked_up(found, EXPONENT_BITS, BITS - 1 - EXPONENT_BITS)
    return found.to(tl.int8, bitcast=True)
