// From int32 sums to outputs, 16 outputs at a time; plain C++ that every level compiles for itself, hence the anonymous
// namespace.
#pragma once

#include <cstring>

#include "integer.hpp"

namespace channelwise {
namespace {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest, ties to even.
inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

// To the nearest, ties to even; too large is infinite.
inline uint16_t to_float16(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    const uint32_t normal = (size + 0xfffu + (size >> 13 & 1u) - (112u << 23)) >> 13;
    // Half a unit of float16's subnormals is a unit of 0.5's.
    const uint32_t subnormal = bits_of(float_of(size) + 0.5f) - 0x3f000000u;
    const uint32_t finite = size < 0x38800000u ? subnormal : normal;
    const uint32_t large = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
    return static_cast<uint16_t>(sign | (size >= 0x47800000u ? large : finite));
}

struct Float32 {
    using type = float;
    static type from(float value) { return value; }
};

struct Bfloat16 {
    using type = uint16_t;
    static type from(float value) { return to_bfloat16(value); }
};

struct Float16 {
    using type = uint16_t;
    static type from(float value) { return to_float16(value); }
};

// As many outputs as are finished together.
constexpr int64_t group_panels = 8;
constexpr int64_t group_outputs = group_panels * panel_outputs;

struct NegativeZeros {
    float values[group_outputs];
    constexpr NegativeZeros() : values() {
        for (float& value : values) value = -0.0f;
    }
};

// What leaves every number as it is when it is added.
constexpr NegativeZeros no_bias;

// The exact sum of one output: `centred` is U_m − K·zero_m.
template <bool with_offsets>
inline uint32_t exact_sum(const Epilogue& e, int32_t sum, int64_t output, uint32_t zero_point, uint32_t centred) {
    const uint32_t exact = static_cast<uint32_t>(sum) - zero_point * static_cast<uint32_t>(e.sums[output]);
    return with_offsets ? exact - static_cast<uint32_t>(e.offsets[output]) * centred : exact;
}

template <class To, bool with_offsets>
void finish_row(const Epilogue& e, typename To::type* out, const int32_t* sums, int64_t first, int64_t count,
                int64_t row, uint32_t zero_point, uint32_t centred) {
    const float* factor = e.factor + first;
    const float* bias = e.bias ? e.bias + first : no_bias.values;
    const float step = e.step ? e.step[row] : 1.0f;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const auto exact = static_cast<int32_t>(exact_sum<with_offsets>(e, sums[i], first + i, zero_point, centred));
        out[i] = To::from(static_cast<float>(exact) * factor[i] * step + bias[i]);
    }
}

template <bool with_offsets>
void write_row(const Epilogue& e, int32_t* out, const int32_t* sums, int64_t first, int64_t count, uint32_t zero_point,
               uint32_t centred) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        out[i] = static_cast<int32_t>(exact_sum<with_offsets>(e, sums[i], first + i, zero_point, centred));
    }
}

template <bool with_offsets>
void finish_rows(const IntegerProduct& p, int64_t first, int64_t count, int64_t row, int64_t rows, const int32_t* sums,
                 int64_t stride) {
    const Epilogue& e = p.epilogue;
    for (int64_t end = row + rows; row < end; ++row, sums += stride) {
        const auto zero_point = static_cast<uint32_t>(e.zero_points ? e.zero_points[row] : e.zero_point);
        const uint32_t all_zero_points = static_cast<uint32_t>(e.columns) * zero_point;
        const uint32_t centred = with_offsets ? static_cast<uint32_t>(e.code_sums[row]) - all_zero_points : 0;
        const int64_t at = row * p.outputs + first;
        const auto finish = [&](auto to) {
            using To = decltype(to);
            auto* out = static_cast<typename To::type*>(e.out) + at;
            finish_row<To, with_offsets>(e, out, sums, first, count, row, zero_point, centred);
        };
        switch (e.type) {
            case Output::float32:
                finish(Float32{});
                break;
            case Output::bfloat16:
                finish(Bfloat16{});
                break;
            case Output::float16:
                finish(Float16{});
                break;
            case Output::sums:
                write_row<with_offsets>(e, static_cast<int32_t*>(e.out) + at, sums, first, count, zero_point, centred);
        }
    }
}

// Writes rows row … row + rows − 1 of up to `group_panels` panels; sums: [rows][stride]. Row by row, so that every
// page of the output is visited once.
inline void finish_panels(const IntegerProduct& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
                          const int32_t* sums, int64_t stride) {
    const int64_t first = panel * panel_outputs, outputs = panels * panel_outputs;
    const int64_t count = p.outputs - first < outputs ? p.outputs - first : outputs;
    if (p.epilogue.offsets) return finish_rows<true>(p, first, count, row, rows, sums, stride);
    finish_rows<false>(p, first, count, row, rows, sums, stride);
}

}  // namespace
}  // namespace channelwise
