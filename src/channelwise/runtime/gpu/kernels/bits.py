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
    """PTX: what the 4-bit codes in the lower and in the upper halves of four bytes stand for, int8.

    Codes are signed indices from −7 plus 7. Those of either half become the digits of a selector of prmt.b32, which
    picks bytes out of eight; bit 3 chooses between the lower and the upper eight entries of the table.
    """
    magnitudes = [_magnitude(index, exponent_bits, mantissa_bits) for index in range(8)]
    table = [-magnitudes[7 - code] for code in range(7)] + magnitudes + [0]
    words = [sum((table[4 * word + place] & 0xFF) << (8 * place) for place in range(4)) for word in range(4)]
    either = 0xE4  # lop3.b32: bits of the first where the third has ones, of the second elsewhere
    both = 0xEA  # (first & second) | third
    names = ", ".join(f"w{place}" for place in range(4))
    tables = " ".join(f"mov.b32 w{place}, {word:#x};" for place, word in enumerate(words))
    return (
        f"{{ .reg .b32 a, b, s, h, low, high, {names}; {tables}"
        f" shr.u32 a, $2, 4; shr.u32 b, $2, 8; lop3.b32 s, $2, a, 0x000f000f, {either:#x};"
        f" lop3.b32 a, a, b, 0x000f000f, {either:#x}; prmt.b32 s, s, a, 0x6420;"  # digits: lower halves, upper halves
        f" shr.u32 h, s, 1; lop3.b32 h, h, 0x44444444, 0x32103210, {both:#x}; and.b32 s, s, 0x77777777;"
        " prmt.b32 low, w0, w1, s; prmt.b32 high, w2, w3, s; prmt.b32 $0, low, high, h;"
        " shr.u32 s, s, 16; shr.u32 h, h, 16;"
        " prmt.b32 low, w0, w1, s; prmt.b32 high, w2, w3, s; prmt.b32 $1, low, high, h; }"
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
def lattice_value(codes, EXPONENT_BITS: tl.constexpr, MANTISSA_BITS: tl.constexpr):
    """What `_look_up` says of one half, for the interpreter."""
    signed = codes.to(tl.int32) - 7
    index = tl.abs(signed)
    exponent = tl.maximum(index >> MANTISSA_BITS, 1)
    magnitude = (index - ((exponent - 1) << MANTISSA_BITS)) << (exponent - 1)
    return tl.where(signed < 0, -magnitude, magnitude).to(tl.int8)


@triton.jit
def looked_up(packed, EXPONENT_BITS: tl.constexpr, MANTISSA_BITS: tl.constexpr):
    """The lattice values, int8, of two strands of 4-bit codes 0 … 14 of a floating-point grid, indices plus 7."""
    if INTERPRETED:
        return (
            lattice_value(packed & 15, EXPONENT_BITS, MANTISSA_BITS),
            lattice_value(packed >> 4, EXPONENT_BITS, MANTISSA_BITS),
        )
    return tl.inline_asm_elementwise(
        _look_up(EXPONENT_BITS, MANTISSA_BITS), "=r,=r,r", [packed], dtype=(tl.int8, tl.int8), is_pure=True, pack=4
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
    if EXPONENT_BITS > 0:
        # Both strands at once; the compiler sees that it is the same for both.
        return looked_up(packed, EXPONENT_BITS, BITS - 1 - EXPONENT_BITS)[STRAND]
    return code(packed, second, third, BITS, STRAND).to(tl.int8, bitcast=True)
