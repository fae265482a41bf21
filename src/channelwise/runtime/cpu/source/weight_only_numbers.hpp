// Conversions between float32 and the 16-bit formats in plain C++, rounding to nearest, ties to even.
#pragma once

#include <cstring>

#include "weight_only.hpp"

namespace channelwise {
namespace {

inline float from_float16(std::uint16_t half) {
    // The exponent is moved as an integer; multiplying by 2^112 then sets its bias, also for subnormal numbers.
    const std::uint32_t magnitude = (half & 0x7fffu) << 13, sign = (half & 0x8000u) << 16;
    const bool finite = (half & 0x7c00u) != 0x7c00u;
    float value;
    std::memcpy(&value, &magnitude, 4);
    value *= 0x1p112f;
    std::uint32_t word;
    std::memcpy(&word, &value, 4);
    word = (finite ? word : magnitude | 0x7f800000u) | sign;
    std::memcpy(&value, &word, 4);
    return value;
}

inline float number(const void* x, Number type, std::int64_t index) {
    if (type == Number::float32) return static_cast<const float*>(x)[index];
    const std::uint16_t word = static_cast<const std::uint16_t*>(x)[index];
    if (type == Number::float16) return from_float16(word);
    const std::uint32_t wide = static_cast<std::uint32_t>(word) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline std::uint16_t to_bfloat16(float value) {
    std::uint32_t word;
    std::memcpy(&word, &value, 4);
    if ((word & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(word >> 16 | 0x40u);
    return static_cast<std::uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

inline std::uint16_t to_float16(float value) {
    std::uint32_t word;
    std::memcpy(&word, &value, 4);
    const std::uint32_t sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        // Adding 1/2 leaves the multiple of 2^-24 that is nearest in the sum's lowest bits.
        float small;
        std::memcpy(&small, &magnitude, 4);
        small += 0.5f;
        std::memcpy(&word, &small, 4);
        return static_cast<std::uint16_t>(sign | (word - 0x3f000000u));
    }
    return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

inline void store(void* y, Number type, std::int64_t index, float value) {
    if (type == Number::float32) {
        static_cast<float*>(y)[index] = value;
    } else {
        static_cast<std::uint16_t*>(y)[index] = type == Number::float16 ? to_float16(value) : to_bfloat16(value);
    }
}

}  // namespace
}  // namespace channelwise
