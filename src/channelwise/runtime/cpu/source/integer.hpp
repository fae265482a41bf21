// Products of unsigned input codes with quad panels: one call's parts, what is done to its sums, and the levels' entry
// points. All levels give the same numbers, bit for bit.
#pragma once

#include <cstdint>

#include "panels.hpp"

namespace channelwise {

enum class Output : int { float32 = 0, bfloat16 = 1, float16 = 2, sums = 3 };

// What becomes of the sums S_mo = Σ_k u_mk · t_ok: exact_mo = S_mo − zero_m·T_o − offset_o·(U_m − K·zero_m) in integers
// modulo 2^32, then exact_mo · factor_o · step_m + bias_o in float32, rounded after each operation. Null pointers stand
// for zeros, and for a step of 1. With Output::sums the integers are written.
struct Epilogue {
    const int32_t* sums;         // T_o = Σ_k t_ok, padded to whole panels
    const int32_t* offsets;      // [outputs]
    const int32_t* code_sums;    // U_m = Σ_k u_mk
    const int32_t* zero_points;  // one per row; null: zero_point is everyone's
    int32_t zero_point;
    int32_t columns;       // K
    const float* factor;   // [outputs]
    const float* step;     // [rows]
    const float* bias;     // [outputs]
    void* out;             // [rows][outputs]
    Output type;
};

struct IntegerProduct {
    const uint8_t* codes;   // [rows][columns], zeros where columns are padding
    const uint8_t* panels;  // see panels.hpp
    const int8_t* table;    // 64 entries
    int bits;
    int64_t rows;
    int64_t outputs;
    int64_t columns;  // padded to whole units
    int threads;
    Epilogue epilogue;
};

void product_portable(const IntegerProduct& product);
#if CHANNELWISE_X86
void product_avx2(const IntegerProduct& product);
void product_avx512(const IntegerProduct& product);
void few_rows_avx512(const IntegerProduct& product);
void few_rows_amx(const IntegerProduct& product);
void product_amx(const IntegerProduct& product);
#endif

// With so many rows at most, codes are multiplied as they are decoded; with more, panels are decoded into the cache.
constexpr int64_t few_rows(int bits) { return bits == 6 || bits == 4 ? 12 : 8; }

// With tiles: so many rows at most without them, and so many at most as they are decoded.
constexpr int64_t few_rows_beside_tiles = 4, few_rows_in_tiles = 32;

}  // namespace channelwise

// A weight, as it stays from call to call.
struct channelwise_quad_panels {
    const uint8_t* panels;
    const int32_t* sums;
    const int8_t* table;
    int64_t outputs;
    int64_t columns;
    int64_t padded_columns;
    int32_t bits;
};

// See Epilogue. step may be null, zero_points, offsets, code_sums and bias too; code_sums are needed with offsets.
CHANNELWISE_EXPORT void channelwise_integer_product(const channelwise_quad_panels* weight, const uint8_t* codes,
                                                    int64_t rows, int32_t zero_point, const int32_t* zero_points,
                                                    const int32_t* code_sums, const int32_t* offsets,
                                                    const float* factor, const float* step, const float* bias,
                                                    void* out, int32_t type, int32_t level, int32_t threads);
