// Quantization of inputs to unsigned bytes, bit for bit the codes of numerics/inputs.py: one pass over the input, static
// or with a step per token. All levels give the same bytes.
#pragma once

#include <cstdint>

#include "levels.hpp"

// An input [rows][columns], rows `stride` numbers apart; type 0, 1, 2: float32, bfloat16, float16. Its codes are written
// as [rows][padded], zeros in the padding, and the sums of a row's codes to code_sums.
struct channelwise_input {
    const void* x;
    int64_t rows;
    int64_t columns;
    int64_t stride;
    int64_t padded;
    uint8_t* codes;
    int32_t* code_sums;
    int32_t type;
};

// The grid that numbers are rounded to, after division by the step. kind 0: integers; 1 and 2: floating point with one
// binade or several, whose values are counted in units of the smallest, 1 / factor.
struct channelwise_grid {
    int32_t kind;
    int32_t asymmetric;      // per token: a zero point is added before the range is cut
    float lowest, highest;   // of the numbers that are rounded
    float steps;             // kind 1: adding it rounds; kind 2: adding it times a number's power of two rounds
    float factor;
    float offset;            // added to a code: 128 for signed ones
};

namespace channelwise {

struct StaticVectors {
    const float* multiplier;  // [columns]
    const float* offset;      // [columns] or null
    const float* gain;        // [columns]: factor times a power of two; null: the grid's factor
};

struct TokenParts {
    const float* shift;    // [columns] or null
    const float* scale;    // [columns] or null
    float range;           // what the largest number of a token is divided by
    float unit;            // the value of one code over the step
    float* steps;          // [rows]
    int32_t* zero_points;  // [rows], for asymmetric grids
};

void static_portable(const channelwise_input& in, const channelwise_grid& grid, const StaticVectors& v, int threads);
void token_portable(const channelwise_input& in, const channelwise_grid& grid, const TokenParts& t, int threads);
#if CHANNELWISE_X86
void static_avx2(const channelwise_input& in, const channelwise_grid& grid, const StaticVectors& v, int threads);
void token_avx2(const channelwise_input& in, const channelwise_grid& grid, const TokenParts& t, int threads);
void static_avx512(const channelwise_input& in, const channelwise_grid& grid, const StaticVectors& v, int threads);
void token_avx512(const channelwise_input& in, const channelwise_grid& grid, const TokenParts& t, int threads);
#endif

}  // namespace channelwise

CHANNELWISE_EXPORT void channelwise_static_bytes(const channelwise_input* in, const channelwise_grid* grid,
                                                 const float* multiplier, const float* offset, const float* gain,
                                                 int32_t level, int32_t threads);

// steps: the value of one code of every row; zero_points are written for asymmetric grids only.
CHANNELWISE_EXPORT void channelwise_token_bytes(const channelwise_input* in, const channelwise_grid* grid,
                                                const float* shift, const float* scale, float range, float unit,
                                                float* steps, int32_t* zero_points, int32_t level, int32_t threads);
