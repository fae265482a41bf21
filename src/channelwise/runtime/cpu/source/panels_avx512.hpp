// Decoding of quad panels in AVX-512 registers: vpermb looks up 64 bytes at once and ignores all but six bits of an
// index, so a table repeated over the bits above a code needs no masks. For the AVX-512 and AMX files only.
#pragma once

#include <immintrin.h>

#include "panels.hpp"

namespace channelwise {
namespace {

inline __m512i load_register(const void* from) { return _mm512_loadu_si512(from); }

// The six bits that the upper two of three registers' bytes make; bits above them are anything.
inline __m512i upper_bits(__m512i a, __m512i b, __m512i c) {
    constexpr int select = 0xca;  // first ? second : third, bit by bit
    const __m512i low = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x03), _mm512_srli_epi16(a, 6),
                                                  _mm512_srli_epi16(b, 4), select);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0f), low, _mm512_srli_epi16(c, 2), select);
}

// The values of one unit, chunk by chunk. With 8 bits the bytes are the values.
template <int bits>
inline void decode_unit(__m512i table, const uint8_t* from, __m512i* values) {
    const __m512i a = load_register(from);
    const auto value = [&](__m512i codes) { return _mm512_permutexvar_epi8(codes, table); };
    if constexpr (bits == 8) {
        values[0] = a;
    } else if constexpr (bits == 4 || bits == 2) {
        values[0] = value(a);
        values[1] = value(_mm512_srli_epi16(a, bits));
        if constexpr (bits == 2) {
            values[2] = value(_mm512_srli_epi16(a, 4));
            values[3] = value(_mm512_srli_epi16(a, 6));
        }
    } else {
        const __m512i b = load_register(from + chunk_bytes), c = load_register(from + 2 * chunk_bytes);
        const __m512i upper = upper_bits(a, b, c);
        if constexpr (bits == 6) {
            values[0] = value(a);
            values[1] = value(b);
            values[2] = value(c);
            values[3] = value(upper);
        } else {
            const __m512i registers[4] = {a, b, c, upper};
            for (int i = 0; i < 4; ++i) {
                values[2 * i] = value(registers[i]);
                values[2 * i + 1] = value(_mm512_srli_epi16(registers[i], 3));
            }
        }
    }
}

template <int bits>
void expand_units(__m512i table, const uint8_t* from, int64_t units, int8_t* to) {
    for (; units > 0; --units, from += unit_bytes(bits), to += unit_chunks(bits) * chunk_bytes) {
        __m512i values[unit_chunks(bits)];
        decode_unit<bits>(table, from, values);
        for (int i = 0; i < unit_chunks(bits); ++i) _mm512_storeu_si512(to + i * chunk_bytes, values[i]);
    }
}

// Decodes units of one panel into [chunk][16][4].
inline void expand_panel(int bits, const int8_t* entries, const uint8_t* from, int64_t units, int8_t* to) {
    const __m512i table = load_register(entries);
    switch (bits) {
        case 8:
            return expand_units<8>(table, from, units, to);
        case 6:
            return expand_units<6>(table, from, units, to);
        case 4:
            return expand_units<4>(table, from, units, to);
        case 3:
            return expand_units<3>(table, from, units, to);
        default:
            return expand_units<2>(table, from, units, to);
    }
}

}  // namespace
}  // namespace channelwise
