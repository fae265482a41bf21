// AVX-512: panels expanded into a buffer of bfloat16 chunks, [chunk][output][2], as lattice values or as weights.
// Only for files compiled for AVX-512.
#pragma once

#include "weight_only_decode.hpp"
#include "weight_only_rows.hpp"

namespace channelwise {
namespace {

constexpr std::int64_t chunk_words = 32;

// Words of two vectors of float32, those of even inputs and those of odd ones, side by side; the rest is cut off.
inline __m512i paired(__m512 even, __m512 odd) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_castps_si512(odd));
}

// Lattice values of a chunk, exact in bfloat16.
template <int bits>
class Lattice {
public:
    explicit Lattice(const float* table) : lookup_(table) {}

    template <int chunk>
    __m512i operator()(const Words<bits>& words) const {
        return lookup_.template operator()<0>(words.template codes<chunk, 0>());
    }

private:
    Lookup<bits> lookup_;
};

// Eight bits are computed: a byte is the lowest one of a float32 of 2^23 and so on, the table a straight line.
template <>
class Lattice<8> {
public:
    explicit Lattice(const float* table)
        : step_(_mm512_set1_ps(table[1] - table[0])),
          first_(_mm512_set1_ps(table[0] - 0x1p23f * (table[1] - table[0]))) {}

    template <int chunk>
    __m512i operator()(const Words<8>& words) const {
        const __m512i codes = words.word[0];
        const __m512i even = chunk ? _mm512_srli_epi32(codes, 8) : codes;
        return paired(value(even), value(_mm512_srli_epi32(codes, 16 + 8 * chunk)));
    }

private:
    __m512 value(__m512i byte) const {
        // (byte & 255) | the float32 2^23
        const __m512i mask = _mm512_set1_epi32(255), start = _mm512_set1_epi32(0x4b000000);
        const __m512i number = _mm512_ternarylogic_epi32(byte, mask, start, 0xea);
        return _mm512_fmadd_ps(_mm512_castsi512_ps(number), step_, first_);
    }

    __m512 step_, first_;
};

constexpr int tile_chunks = 16;  // of 32 columns

// A tile from `columns` ≤ 32 columns (whole units), filled up with zeros: stored is what `scaling` makes of the lattice
// values of each chunk.
template <int bits, class Scaling>
inline void expand_tile(const Lattice<bits>& lattice, const std::uint8_t* data, std::int64_t columns,
                        std::int64_t prefetch, const Scaling& scaling, std::uint16_t* target) {
    using U = Unit<bits>;
    std::int64_t chunk = 0;
    for (std::int64_t k = 0; k < columns; k += U::columns, data += U::bytes, chunk += U::chunks) {
        for (int r = 0; r < U::registers; ++r) {
            _mm_prefetch(reinterpret_cast<const char*>(data + prefetch + 64 * r), _MM_HINT_T1);
        }
        const Words<bits> words(data);
        unrolled<U::chunks>([&](auto index) {
            constexpr int c = decltype(index)::value;
            const __m512i values = scaling(lattice.template operator()<c>(words), chunk + c);
            _mm512_storeu_si512(target + (chunk + c) * chunk_words, values);
        });
    }
    for (; chunk < tile_chunks; ++chunk) _mm512_storeu_si512(target + chunk * chunk_words, _mm512_setzero_si512());
}

// What is made of the lattice values of a tile of `columns` ≤ 32 columns of a panel, which lie in one group.
struct NoScaling {
    NoScaling(const PairPanels&, std::int64_t, std::int64_t, std::int64_t) {}
    __m512i operator()(__m512i values, std::int64_t) const { return values; }
};

inline __m512 even_values(__m512i values) { return _mm512_castsi512_ps(_mm512_slli_epi32(values, 16)); }

inline __m512 odd_values(__m512i values) {
    return _mm512_castsi512_ps(_mm512_and_si512(values, _mm512_set1_epi32(0xffff0000)));
}

// value · scale + shift, rounded to bfloat16 by adding half of its last place; what is below that place is still there.
inline __m512 scaled_value(__m512 value, __m512 scale, __m512 shift) {
    const __m512 weight = _mm512_fmadd_ps(value, scale, shift);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(weight), _mm512_set1_epi32(0x8000)));
}

// Weights whose scales and zero points lie along rows.
class RowScaling {
public:
    RowScaling(const PairPanels& weight, std::int64_t panel, std::int64_t column, std::int64_t) {
        const std::int64_t index = (panel * weight.groups + column / weight.group) * 16;
        scale_ = scales_at(weight.scale, weight.scale_type, index);
        shift_ = _mm512_setzero_ps();
        if (weight.zero_point) shift_ = _mm512_fnmadd_ps(zero_points_at(weight.zero_point, index), scale_, shift_);
    }

    __m512i operator()(__m512i values, std::int64_t) const {
        return paired(scaled_value(even_values(values), scale_, shift_),
                      scaled_value(odd_values(values), scale_, shift_));
    }

private:
    __m512 scale_, shift_;
};

// Weights whose scales and zero points lie down columns.
class ColumnScaling {
public:
    ColumnScaling(const PairPanels& weight, std::int64_t panel, std::int64_t column, std::int64_t columns) {
        const std::int64_t index = 16 * panel / weight.group * weight.padded + column;
        for (int half = 0; half < 32; half += 16) {
            const __mmask16 lanes = lanes_before(columns - half);
            const std::int64_t at = index + (lanes ? half : 0);
            const __m512 scale = numbers_at(row_of(weight.scale, weight.scale_type, at), weight.scale_type, lanes);
            __m512 zero_point = _mm512_setzero_ps();
            if (weight.zero_point) {
                const __m128i bytes = _mm_maskz_loadu_epi8(lanes, weight.zero_point + at);
                zero_point = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
            }
            _mm512_store_ps(scale_ + half, scale);
            _mm512_store_ps(shift_ + half, _mm512_fnmadd_ps(zero_point, scale, _mm512_setzero_ps()));
        }
    }

    __m512i operator()(__m512i values, std::int64_t chunk) const {
        return paired(scaled(even_values(values), 2 * chunk), scaled(odd_values(values), 2 * chunk + 1));
    }

private:
    __m512 scaled(__m512 value, std::int64_t k) const {
        return scaled_value(value, _mm512_set1_ps(scale_[k]), _mm512_set1_ps(shift_[k]));
    }

    alignas(64) float scale_[32], shift_[32];
};

}  // namespace
}  // namespace channelwise
