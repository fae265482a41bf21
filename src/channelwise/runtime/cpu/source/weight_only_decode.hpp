// AVX-512: from the words of a unit to lattice values in bfloat16, [output][2] as the pair products take them.
// Only for files compiled for AVX-512.
#pragma once

// g++ 12 takes its own intrinsics' undefined vectors for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <immintrin.h>

#include "weight_only.hpp"
#include "weight_only_units.hpp"

namespace channelwise {
namespace {

// Eight bits have no table of bfloat16 words that two instructions could look up: there a value is the sum of two
// parts, one per half of the code, which the products add up.
template <int bits>
constexpr int parts_of = bits == 8 ? 2 : 1;

// The upper half of a float32; exact for numbers that are bfloat16.
inline std::uint16_t bfloat16_word(float value) {
    std::uint32_t word;
    __builtin_memcpy(&word, &value, 4);
    return static_cast<std::uint16_t>(word >> 16);
}

template <int bits>
class Lookup {
public:
    // table: 2^bits lattice values, each (for eight bits each part) exact in bfloat16. The lookups use five or six
    // bits of a word: entries are repeated over the bits that do not belong to the code, so none are masked.
    explicit Lookup(const float* table) {
        alignas(64) std::uint16_t low[64], high[64];
        for (int i = 0; i < 64; ++i) {
            if (bits == 8) {
                low[i] = bfloat16_word(table[i & 15] - table[0]);
                high[i] = bfloat16_word(table[(i & 15) << 4]);
            } else {
                low[i] = bfloat16_word(table[i & ((1 << bits) - 1)]);
                high[i] = low[i];
            }
        }
        low_ = _mm512_load_si512(low);
        high_ = _mm512_load_si512(bits == 6 ? low + 32 : high);
    }

    template <int part>
    __m512i operator()(__m512i words) const {
        if constexpr (bits == 6) return _mm512_permutex2var_epi16(low_, words, high_);
        return _mm512_permutexvar_epi16(words, part ? high_ : low_);
    }

private:
    __m512i low_, high_;
};

template <int bits>
struct Words {
    __m512i word[Unit<bits>::registers];

    explicit Words(const std::uint8_t* unit) {
        for (int r = 0; r < Unit<bits>::registers; ++r) word[r] = _mm512_loadu_si512(unit + 64 * r);
    }

    // Words whose lowest bits are the chunk's codes (of eight bits: their half `part`); the bits above are anything.
    template <int chunk, int part>
    __m512i codes() const {
        using U = Unit<bits>;
        constexpr int byte = byte_of<bits>(chunk), bit = bit_of<bits>(chunk);
        if constexpr (chunk < U::registers * U::whole) {
            return shifted<byte + bit + 4 * part>(word[chunk / U::whole]);
        } else {
            constexpr int top = byte + 8 - U::left;
            const __m512i low = select<3>(shifted<top>(word[0]), shifted<top - 2>(word[1]));
            return shifted<bit>(select<15>(low, shifted<top - 4>(word[2])));
        }
    }

private:
    template <int shift>
    static __m512i shifted(__m512i words) {
        if constexpr (shift == 0) return words;
        return _mm512_srli_epi16(words, shift);
    }

    // The bits of `mask` from a, the others from b.
    template <int mask>
    static __m512i select(__m512i a, __m512i b) {
        return _mm512_ternarylogic_epi32(_mm512_set1_epi16(mask), a, b, 0xca);
    }
};

// A panel's scales or zero points of one group, as float32.
inline __m512 scales_at(const void* scale, Number type, std::int64_t index) {
    if (type == Number::float32) return _mm512_loadu_ps(static_cast<const float*>(scale) + index);
    const auto* half = static_cast<const std::uint16_t*>(scale) + index;
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
}

inline __m512 zero_points_at(const std::int8_t* zero_point, std::int64_t index) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zero_point + index));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

}  // namespace
}  // namespace channelwise
