// AVX-512: inputs as whole numbers times a power of two per block of columns, in signed digits of base 256, in the order
// that the bytes of pair panels have. Two digits hold a bfloat16 number exactly down to 1/128 of the block's largest.
// Only for files compiled for AVX-512.
#pragma once

#include "weight_only_rows.hpp"
#include "weight_only_units.hpp"

namespace channelwise {
namespace {

constexpr std::int64_t block_columns = 128;  // at most: so that a digit's sum fits into 16 bits

// How many digits inputs of this type are given.
constexpr int digits_of(Number type) { return type == Number::float32 ? 3 : 2; }

// How columns are cut into blocks: groups are, each for itself.
struct Blocks {
    std::int64_t group, groups, per_group;

    explicit Blocks(const PairPanels& weight)
        : group(weight.down_columns ? weight.padded : weight.group),
          groups(weight.down_columns ? 1 : weight.groups),
          per_group((group + block_columns - 1) / block_columns) {}

    std::int64_t count() const { return groups * per_group; }
    std::int64_t begin(std::int64_t block) const {
        return block / per_group * group + block % per_group * block_columns;
    }
    std::int64_t end(std::int64_t block, std::int64_t columns) const {
        const std::int64_t group_end = (block / per_group + 1) * group;
        return smaller(columns, smaller(begin(block) + block_columns, group_end));
    }
};

// The codes of a weight as unsigned whole numbers w, its values (w − lowest) · unit; bytes: w of every code, repeated.
struct WholeTable {
    alignas(64) std::uint8_t bytes[64];
    std::int32_t lowest;
    float unit;
    bool fits;

    explicit WholeTable(const PairPanels& weight) : bytes{}, lowest(0), unit(0.0f), fits(true) {
        const int count = 1 << weight.bits;
        const float* table = weight.table;
        float first = table[0];
        for (int i = 0; i < count; ++i) {
            const float size = table[i] < 0.0f ? -table[i] : table[i];
            if (size > 0.0f && (unit == 0.0f || size < unit)) unit = size;
            if (table[i] < first) first = table[i];
        }
        if (unit == 0.0f) unit = 1.0f;
        const float below = -first / unit;
        fits = below >= 0.0f && below <= 255.0f;
        for (int i = 0; i < count && fits; ++i) {
            const float number = (table[i] - first) / unit;
            fits = number <= 255.0f && number == static_cast<float>(static_cast<int>(number));
            // Of eight bits the codes themselves are multiplied.
            if (weight.bits == 8) fits = fits && number == static_cast<float>(i);
            if (fits && i < 64) bytes[i] = static_cast<std::uint8_t>(number);
        }
        if (!fits) return;
        lowest = static_cast<std::int32_t>(below);
        fits = static_cast<float>(lowest) == below;
        for (int i = count; i < 64; ++i) bytes[i] = bytes[i & (count - 1)];
    }
};

// Inputs as digits. A line is one digit of one row, the lowest digit first.
struct Digits {
    std::int8_t* bytes;    // [line][stride]
    std::int32_t* starts;  // [line][blocks]: what the block's sums start with, or, with zero points along rows, −Σ digit
    float* units;          // [row][blocks]: what a block's sums count
    std::int64_t stride, blocks;
    int digits;

    std::int8_t* line(std::int64_t row, int digit) const { return bytes + (row * digits + digit) * stride; }
    std::int32_t* start(std::int64_t row, int digit) const { return starts + (row * digits + digit) * blocks; }
    Digits from(std::int64_t row) const {
        return {bytes + row * digits * stride, starts + row * digits * blocks, units + row * blocks,
                stride, blocks, digits};
    }
};

// Memory for some rows' digits.
class DigitsMemory {
public:
    Digits at_least(std::int64_t rows, int digits, std::int64_t padded, std::int64_t blocks) {
        const std::int64_t stride = up_to_multiple(padded, 32);
        return {bytes_.at_least(rows * digits * stride), starts_.at_least(rows * digits * blocks),
                units_.at_least(rows * blocks), stride, blocks, digits};
    }

private:
    Workspace<std::int8_t> bytes_;
    Workspace<std::int32_t> starts_;
    Workspace<float> units_;
};

// The power of two that makes a block's inputs whole numbers of `digits` digits, and its inverse times `unit`.
struct Power {
    float up, down;

    Power(float largest, int digits, float unit) {
        // Signed digits end a little before 2^15 or 2^23.
        const float margin = largest * 1.0041f;
        std::uint32_t word;
        __builtin_memcpy(&word, &margin, 4);
        const auto exponent = static_cast<std::int32_t>(larger(word >> 23, 32));
        const bool finite = largest <= 3.0e38f;
        const std::uint32_t up_word = static_cast<std::uint32_t>(127 + 8 * digits - 1 - (exponent - 126)) << 23;
        const std::uint32_t down_word = static_cast<std::uint32_t>(127 - 8 * digits + 1 + (exponent - 126)) << 23;
        __builtin_memcpy(&up, &up_word, 4);
        __builtin_memcpy(&down, &down_word, 4);
        if (finite) {
            down *= unit;
        } else {
            up = 0.0f;
            down = __builtin_nanf("");
        }
    }
};

// Where the columns of 32 go: byte 4q + b of a unit's register of bytes q is output byte b's column (`Unit`).
template <int bits>
struct ByteOrder {
    alignas(64) std::int32_t column[32];

    constexpr ByteOrder() : column() {
        using U = Unit<bits>;
        for (int i = 0; i < 32; ++i) {
            const int place = i % U::columns, quad = place / 4, byte = place % 4;
            const int chunk = quad / U::per_byte * U::whole + quad % U::per_byte + (byte % 2) * U::per_byte;
            column[i] = i - place + 2 * chunk + byte / 2;
        }
    }
};

template <int bits>
constexpr ByteOrder<bits> byte_order;

// Sixteen whole numbers' lowest digits; what is above them is left in `numbers`.
inline __m512i split_digit(__m512i& numbers) {
    const __m512i above = _mm512_srai_epi32(_mm512_add_epi32(numbers, _mm512_set1_epi32(128)), 8);
    const __m512i digit = _mm512_sub_epi32(numbers, _mm512_slli_epi32(above, 8));
    numbers = above;
    return digit;
}

// Numbers of 16 bits alone in their lanes, as pairwise products take them.
inline __m512i half_words(__m512i numbers) { return _mm512_and_si512(numbers, _mm512_set1_epi32(0xffff)); }

// A block of a row: its inputs, zeros beyond the row, and what their digits count in the block's start.
struct Block {
    alignas(64) float x[block_columns];
    alignas(64) std::int32_t zero_point[block_columns];
    std::int64_t columns;  // a multiple of 32

    float largest() const {
        // The largest word: of floating-point numbers it would lose those that are none.
        __m512i words = _mm512_setzero_si512();
        for (std::int64_t k = 0; k < columns; k += 16) {
            const __m512i size = _mm512_and_si512(_mm512_load_si512(x + k), _mm512_set1_epi32(0x7fffffff));
            words = _mm512_max_epi32(words, size);
        }
        const std::int32_t word = _mm512_reduce_max_epi32(words);
        float number;
        __builtin_memcpy(&number, &word, 4);
        return number;
    }
};

// A block's digits from `target` on, `stride` bytes apart, and in `sums` those of digit · zero point.
template <int bits>
inline void store_digits(const Block& block, float up, int digits, std::int8_t* target, std::int64_t stride,
                         __m512i* sums) {
    const __m512 scale = _mm512_set1_ps(up);
    const __m512i first = _mm512_load_si512(byte_order<bits>.column);
    const __m512i second = _mm512_load_si512(byte_order<bits>.column + 16);
    for (std::int64_t k = 0; k < block.columns; k += 32) {
        __m512i numbers[2], zero_points[2];
        for (int half = 0; half < 2; ++half) {
            const __m512 x = _mm512_load_ps(block.x + k + 16 * half);
            numbers[half] = _mm512_cvtps_epi32(_mm512_mul_ps(x, scale));
            zero_points[half] = _mm512_load_si512(block.zero_point + k + 16 * half);
        }
        for (int digit = 0; digit < digits; ++digit) {
            const __m512i low = split_digit(numbers[0]), high = split_digit(numbers[1]);
            sums[digit] = _mm512_dpwssd_epi32(sums[digit], low, zero_points[0]);
            sums[digit] = _mm512_dpwssd_epi32(sums[digit], high, zero_points[1]);
            auto* bytes = reinterpret_cast<__m128i*>(target + digit * stride + k);
            _mm_storeu_si128(bytes, _mm512_cvtepi32_epi8(_mm512_permutex2var_epi32(low, first, high)));
            _mm_storeu_si128(bytes + 1, _mm512_cvtepi32_epi8(_mm512_permutex2var_epi32(low, second, high)));
        }
    }
}

// One row's digits. fill(begin, block): the block's inputs and zero points from column `begin` on.
template <int bits, class Fill>
inline void digits_of_row(const Blocks& blocks, std::int64_t padded, float unit, const Digits& digits,
                          std::int64_t row, const Fill& fill) {
    Block block;
    for (std::int64_t index = 0; index < digits.blocks; ++index) {
        const std::int64_t begin = blocks.begin(index);
        block.columns = up_to_multiple(larger(0, blocks.end(index, padded) - begin), 32);
        fill(begin, block);
        const Power power(block.largest(), digits.digits, unit);
        __m512i sums[3] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
        store_digits<bits>(block, power.up, digits.digits, digits.line(row, 0) + begin, digits.stride, sums);
        digits.units[row * digits.blocks + index] = power.down;
        for (int digit = 0; digit < digits.digits; ++digit) {
            digits.start(row, digit)[index] = -_mm512_reduce_add_epi32(sums[digit]);
        }
    }
}

// A row as it is; its digits count `zero_point` each.
struct PlainRow {
    const void* x;
    Number type;
    std::int64_t columns;
    std::int32_t zero_point;

    void operator()(std::int64_t begin, Block& block) const {
        for (std::int64_t k = 0; k < block.columns; k += 16) {
            const __mmask16 lanes = lanes_before(columns - begin - k);
            _mm512_store_ps(block.x + k, numbers_at(row_of(x, type, lanes ? begin + k : 0), type, lanes));
            _mm512_store_si512(block.zero_point + k, _mm512_set1_epi32(zero_point));
        }
    }
};

// A row times a group's scales down the columns; digits count zero points, and `lowest`.
struct ScaledRow {
    const PairPanels& weight;
    std::int64_t group;
    const void* x;
    Number type;
    std::int32_t lowest;

    void operator()(std::int64_t begin, Block& block) const {
        for (std::int64_t k = 0; k < block.columns; k += 16) {
            const __mmask16 lanes = lanes_before(weight.columns - begin - k);
            const std::int64_t column = lanes ? begin + k : 0, index = group * weight.padded + column;
            const void* scale = row_of(weight.scale, weight.scale_type, index);
            const __m512 values = numbers_at(row_of(x, type, column), type, lanes);
            _mm512_store_ps(block.x + k, _mm512_mul_ps(values, numbers_at(scale, weight.scale_type, lanes)));
            __m512i zero_point = _mm512_set1_epi32(lowest);
            if (weight.zero_point) {
                const __m128i bytes = _mm_maskz_loadu_epi8(lanes, weight.zero_point + index);
                zero_point = _mm512_add_epi32(zero_point, _mm512_cvtepi8_epi32(bytes));
            }
            _mm512_store_si512(block.zero_point + k, half_words(zero_point));
        }
    }
};

}  // namespace
}  // namespace channelwise
