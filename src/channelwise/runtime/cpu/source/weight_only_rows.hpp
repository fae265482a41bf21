// AVX-512: inputs as rows of bfloat16 pieces that add up to them, and outputs from sums. A float16 number is exactly
// two pieces, a float32 number three, so the pieces' products add up to the input's own.
// Only for files compiled for AVX-512.
#pragma once

#include <immintrin.h>

#include "weight_only.hpp"

namespace channelwise {
namespace {

constexpr std::int64_t up_to_multiple(std::int64_t value, std::int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

constexpr int number_size(Number type) { return type == Number::float32 ? 4 : 2; }

// How many bfloat16 numbers add up to one of this type.
constexpr int pieces_of(Number type) { return type == Number::bfloat16 ? 1 : type == Number::float16 ? 2 : 3; }

inline const void* row_of(const void* x, Number type, std::int64_t offset) {
    return static_cast<const char*>(x) + offset * number_size(type);
}

// Sixteen numbers as float32; lanes outside the mask are not read and 0.
inline __m512 numbers_at(const void* x, Number type, __mmask16 lanes) {
    if (type == Number::float32) return _mm512_maskz_loadu_ps(lanes, x);
    const __m256i words = _mm256_maskz_loadu_epi16(lanes, x);
    if (type == Number::float16) return _mm512_cvtph_ps(words);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

inline void store_numbers(void* y, Number type, __mmask16 lanes, __m512 values) {
    if (type == Number::float32) {
        _mm512_mask_storeu_ps(y, lanes, values);
    } else if (type == Number::float16) {
        _mm256_mask_storeu_epi16(y, lanes, _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
        _mm256_mask_storeu_epi16(y, lanes, (__m256i)_mm512_cvtneps_pbh(values));
    }
}

constexpr __mmask16 lanes_before(std::int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// Splits sixteen numbers into pieces, `stride` words apart. All but the last are cut off, so that what is left is
// exact; of infinite numbers nothing is left.
inline void store_pieces(__m512 values, int pieces, std::uint16_t* target, std::int64_t stride) {
    for (int piece = 0; piece + 1 < pieces; ++piece, target += stride) {
        const __m512i cut = _mm512_and_si512(_mm512_castps_si512(values), _mm512_set1_epi32(0xffff0000));
        const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(cut, 16));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), words);
        const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(values, 0x99));
        values = _mm512_maskz_sub_ps(finite, values, _mm512_castsi512_ps(cut));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), (__m256i)_mm512_cvtneps_pbh(values));
}

// Where a row's words lie: 32 columns next to each other, such blocks `block` words apart, pieces `piece` words apart.
struct RowLayout {
    std::int64_t width;  // columns with the zeros at the end, a multiple of 32
    std::int64_t block, piece;

    std::int64_t at(std::int64_t column) const { return column / 32 * block + column % 32; }
};

// One row of `columns` numbers as pieces.
inline void split_row(const void* x, Number type, std::int64_t columns, int pieces, std::uint16_t* target,
                      const RowLayout& layout) {
    for (std::int64_t k = 0; k < layout.width; k += 16) {
        const __mmask16 lanes = lanes_before(columns - k);
        const void* source = row_of(x, type, lanes ? k : 0);
        std::uint16_t* words = target + layout.at(k);
        if (type == Number::bfloat16 && pieces == 1) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), _mm256_maskz_loadu_epi16(lanes, source));
        } else {
            store_pieces(numbers_at(source, type, lanes), pieces, words, layout.piece);
        }
    }
}

// Σ_k x_k over each group of columns, `stride` floats apart.
inline void group_sums(const void* x, Number type, std::int64_t columns, std::int64_t group, float* sums,
                       std::int64_t stride) {
    for (std::int64_t start = 0; start < columns; start += group, sums += stride) {
        const std::int64_t end = smaller(start + group, columns);
        __m512 sum = _mm512_setzero_ps();
        for (std::int64_t k = start; k < end; k += 16) {
            sum = _mm512_add_ps(sum, numbers_at(row_of(x, type, k), type, lanes_before(end - k)));
        }
        *sums = _mm512_reduce_add_ps(sum);
    }
}

// One row times a group's scales down the columns, in float32, as pieces; returns Σ_k x_k · scale_k · zero point_k.
inline float scale_row(const PairPanels& weight, std::int64_t group, const void* x, Number type, int pieces,
                       std::uint16_t* target, const RowLayout& layout) {
    __m512 sum = _mm512_setzero_ps();
    for (std::int64_t k = 0; k < layout.width; k += 16) {
        const __mmask16 lanes = lanes_before(weight.columns - k);
        const std::int64_t index = group * weight.padded + (lanes ? k : 0);
        const void* scale = row_of(weight.scale, weight.scale_type, index);
        __m512 scaled = numbers_at(row_of(x, type, lanes ? k : 0), type, lanes);
        scaled = _mm512_mul_ps(scaled, numbers_at(scale, weight.scale_type, lanes));
        store_pieces(scaled, pieces, target + layout.at(k), layout.piece);
        if (weight.zero_point) {
            const __m512i whole = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, weight.zero_point + index));
            sum = _mm512_fmadd_ps(scaled, _mm512_cvtepi32_ps(whole), sum);
        }
    }
    return _mm512_reduce_add_ps(sum);
}

// Sixteen outputs of one row: the pieces' sums, `stride` floats apart, and the bias.
inline void store_outputs(const PairProduct& call, std::int64_t row, std::int64_t panel, const float* sums, int pieces,
                          std::int64_t stride) {
    const std::int64_t first = 16 * panel;
    const __mmask16 lanes = lanes_before(call.weight.outputs - first);
    __m512 total = _mm512_loadu_ps(sums);
    for (int piece = 1; piece < pieces; ++piece) total = _mm512_add_ps(total, _mm512_loadu_ps(sums + piece * stride));
    if (call.bias) total = _mm512_add_ps(total, _mm512_maskz_loadu_ps(lanes, call.bias + first));
    char* target = static_cast<char*>(call.y) + (row * call.weight.outputs + first) * number_size(call.y_type);
    store_numbers(target, call.y_type, lanes, total);
}

}  // namespace
}  // namespace channelwise
