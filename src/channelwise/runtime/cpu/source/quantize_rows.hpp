// The input quantizers in plain C++ that the compiler vectorises; every level compiles it for itself, hence the
// anonymous namespace. Operations are in the order of numerics/inputs.py and numerics/floats.py, each rounded on its own.
#pragma once

#include <algorithm>
#include <cstring>

#include "quantize.hpp"

namespace channelwise {
namespace {

// Numbers that stay in the first cache from one step to the next.
constexpr int64_t block_columns = 1024;

// With fewer numbers than this a second thread takes longer to start than to help.
constexpr int64_t numbers_per_thread = 16384;

// What makes a float32 of up to 2^22 whole when it is added and taken off again, ties to even.
constexpr float whole_steps = 1.5f * 8388608.0f;

constexpr float smallest_step = 1.17549435082228750797e-38f;  // 2^-126

struct Single {
    using type = float;
    static float widen(float x) { return x; }
};

struct Brain {
    using type = uint16_t;
    static float widen(uint16_t x) {
        const uint32_t bits = static_cast<uint32_t>(x) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
};

struct Half {
    using type = uint16_t;
    static float widen(uint16_t x) {
        const uint32_t size = x & 0x7fffu, rebias = 112u << 23;
        const float tiny = static_cast<float>(static_cast<int32_t>(size)) * 5.9604644775390625e-8f;  // 2^-24
        uint32_t subnormal;
        std::memcpy(&subnormal, &tiny, sizeof subnormal);
        const uint32_t normal = (size << 13) + rebias + (size >= 0x7c00u ? rebias : 0u);
        const uint32_t bits = (size < 0x400u ? subnormal : normal) | static_cast<uint32_t>(x & 0x8000u) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
};

// NaN becomes the lowest.
inline float cut(float x, float lowest, float highest) {
    const float above = x > lowest ? x : lowest;
    return above < highest ? above : highest;
}

template <int kind>
inline float rounded(float x, float steps) {
    if (kind == 0) return (x + whole_steps) - whole_steps;
    if (kind == 1) return (x + steps) - steps;
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= 0x7f800000u;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    const float added = (power > 2.0f ? power : 2.0f) * steps;
    return (x + added) - added;
}

// Codes of scaled numbers; returns their sum.
template <int kind, bool with_gain>
int32_t write_codes(const channelwise_grid& grid, const float* scaled, const float* gain, int64_t count,
                    uint8_t* codes) {
    const float lowest = grid.lowest, highest = grid.highest, steps = grid.steps, factor = grid.factor;
    const float offset = grid.offset;
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
        const float lattice = rounded<kind>(cut(scaled[i], lowest, highest), steps);
        const int32_t code = static_cast<int32_t>(lattice * (with_gain ? gain[i] : factor) + offset);
        codes[i] = static_cast<uint8_t>(code);
        sum += code;
    }
    return sum;
}

int32_t codes_of(const channelwise_grid& grid, const float* scaled, const float* gain, int64_t count, uint8_t* codes) {
    switch (grid.kind) {
        case 0:
            return gain ? write_codes<0, true>(grid, scaled, gain, count, codes)
                        : write_codes<0, false>(grid, scaled, gain, count, codes);
        case 1:
            return gain ? write_codes<1, true>(grid, scaled, gain, count, codes)
                        : write_codes<1, false>(grid, scaled, gain, count, codes);
        default:
            return gain ? write_codes<2, true>(grid, scaled, gain, count, codes)
                        : write_codes<2, false>(grid, scaled, gain, count, codes);
    }
}

template <class From>
void scale_numbers(const typename From::type* x, const float* multiplier, const float* offset, int64_t count,
                   float* scaled) {
    if (offset) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) scaled[i] = From::widen(x[i]) * multiplier[i] + offset[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) scaled[i] = From::widen(x[i]) * multiplier[i];
    }
}

template <class From>
void transform_numbers(const typename From::type* x, const float* shift, const float* scale, int64_t count, float* to) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = From::widen(x[i]);
    if (shift) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) to[i] -= shift[i];
    }
    if (scale) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) to[i] /= scale[i];
    }
}

template <class From>
const typename From::type* row_of(const channelwise_input& in, int64_t row) {
    return static_cast<const typename From::type*>(in.x) + row * in.stride;
}

template <class From>
void static_row(const channelwise_input& in, const channelwise_grid& grid, const StaticVectors& v, int64_t row) {
    alignas(64) float scaled[block_columns];
    uint8_t* codes = in.codes + row * in.padded;
    int32_t sum = 0;
    for (int64_t first = 0; first < in.columns; first += block_columns) {
        const int64_t count = std::min(block_columns, in.columns - first);
        const float* offset = v.offset ? v.offset + first : nullptr;
        scale_numbers<From>(row_of<From>(in, row) + first, v.multiplier + first, offset, count, scaled);
        sum += codes_of(grid, scaled, v.gain ? v.gain + first : nullptr, count, codes + first);
    }
    std::memset(codes + in.columns, 0, static_cast<size_t>(in.padded - in.columns));
    in.code_sums[row] = sum;
}

struct Ends {
    float low, high;
};

// The smallest and the largest number, or zero.
inline Ends ends_of(const float* x, int64_t count) {
    float low = 0.0f, high = 0.0f;
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < count; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    return {low, high};
}

inline float at_least(float x, float smallest) { return x > smallest ? x : smallest; }

// Codes of an asymmetric grid: the zero point is added to the whole number.
inline int32_t asymmetric_codes(const channelwise_grid& grid, const float* x, float step, float zero_point,
                                int64_t count, uint8_t* codes) {
    const float lowest = grid.lowest, highest = grid.highest;
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
        const float whole = rounded<0>(x[i] / step, 0.0f) + zero_point;
        const int32_t code = static_cast<int32_t>(cut(whole, lowest, highest));
        codes[i] = static_cast<uint8_t>(code);
        sum += code;
    }
    return sum;
}

inline int32_t symmetric_codes(const channelwise_grid& grid, float* x, float step, int64_t count, uint8_t* codes) {
    int32_t sum = 0;
    for (int64_t first = 0; first < count; first += block_columns) {
        const int64_t size = std::min(block_columns, count - first);
        float* part = x + first;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) part[i] /= step;
        sum += codes_of(grid, part, nullptr, size, codes + first);
    }
    return sum;
}

template <class From>
void token_row(const channelwise_input& in, const channelwise_grid& grid, const TokenParts& t, int64_t row, float* x) {
    uint8_t* codes = in.codes + row * in.padded;
    transform_numbers<From>(row_of<From>(in, row), t.shift, t.scale, in.columns, x);
    const Ends ends = ends_of(x, in.columns);
    if (grid.asymmetric) {
        const float step = at_least((ends.high - ends.low) / t.range, smallest_step);
        const float zero_point = rounded<0>(-ends.low / step, 0.0f);
        in.code_sums[row] = asymmetric_codes(grid, x, step, zero_point, in.columns, codes);
        t.steps[row] = step;
        t.zero_points[row] = static_cast<int32_t>(zero_point);
    } else {
        const float step = at_least(at_least(ends.high, -ends.low) / t.range, smallest_step);
        in.code_sums[row] = symmetric_codes(grid, x, step, in.columns, codes);
        t.steps[row] = step * t.unit;
    }
    std::memset(codes + in.columns, 0, static_cast<size_t>(in.padded - in.columns));
}

inline int threads_for(const channelwise_input& in, int threads) {
    const int64_t useful = std::min(in.rows, in.rows * in.columns / numbers_per_thread);
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, useful)));
}

template <class Work>
void each_row(const channelwise_input& in, int threads, const Work& work) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < in.rows; ++row) work(row);
}

template <class From>
void token_rows(const channelwise_input& in, const channelwise_grid& grid, const TokenParts& t, int threads) {
#pragma omp parallel num_threads(threads)
    {
        // Not a vector: its functions would be shared with other levels.
        float* x = new float[static_cast<size_t>(in.columns)];
#pragma omp for schedule(static)
        for (int64_t row = 0; row < in.rows; ++row) token_row<From>(in, grid, t, row, x);
        delete[] x;
    }
}

inline void static_bytes(const channelwise_input& in, const channelwise_grid& grid, const StaticVectors& v,
                         int threads) {
    const int used = threads_for(in, threads);
    if (in.type == 0) return each_row(in, used, [&](int64_t row) { static_row<Single>(in, grid, v, row); });
    if (in.type == 1) return each_row(in, used, [&](int64_t row) { static_row<Brain>(in, grid, v, row); });
    each_row(in, used, [&](int64_t row) { static_row<Half>(in, grid, v, row); });
}

inline void token_bytes(const channelwise_input& in, const channelwise_grid& grid, const TokenParts& t, int threads) {
    const int used = threads_for(in, threads);
    if (in.type == 0) return token_rows<Single>(in, grid, t, used);
    if (in.type == 1) return token_rows<Brain>(in, grid, t, used);
    token_rows<Half>(in, grid, t, used);
}

}  // namespace
}  // namespace channelwise
