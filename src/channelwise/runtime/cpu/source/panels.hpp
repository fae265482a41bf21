// How quad panels lie in memory. A panel holds 16 outputs; a chunk of 4 columns × 16 outputs is one 64-byte register,
// byte [output][column] at 4·output + column; codes narrower than a byte share registers, several chunks to a unit:
//   8 bits: 1 register, 1 chunk.   4 bits: 1 register, chunk i in bits 4i.   2 bits: 1 register, chunk i in bits 2i.
//   6 bits: registers A, B, C hold chunks 0–2 in their low 6 bits, chunk 3 in their upper two (A lowest).
//   3 bits: A, B, C hold chunks 0–5 in bits 0–2 and 3–5, chunks 6 and 7 in the 6 bits that their upper two make.
#pragma once

#include <cstddef>
#include <cstdint>

#include "levels.hpp"

namespace channelwise {

constexpr int panel_outputs = 16;
constexpr int chunk_columns = 4;
constexpr int chunk_bytes = panel_outputs * chunk_columns;

// Entries of a lookup table in the kernels: that of the codes, repeated.
constexpr int table_entries = 64;

constexpr bool is_container(int bits) { return bits == 8 || bits == 6 || bits == 4 || bits == 3 || bits == 2; }

constexpr int unit_chunks(int bits) {
    return bits == 8 ? 1 : bits == 4 ? 2 : bits == 3 ? 8 : 4;
}

constexpr int unit_registers(int bits) { return bits == 6 || bits == 3 ? 3 : 1; }

constexpr int unit_columns(int bits) { return unit_chunks(bits) * chunk_columns; }

constexpr int unit_bytes(int bits) { return unit_registers(bits) * chunk_bytes; }

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

constexpr int64_t panels_of(int64_t outputs) { return (outputs + panel_outputs - 1) / panel_outputs; }

// Bytes of `columns` columns, a multiple of the unit's, of one panel.
constexpr int64_t panel_bytes(int bits, int64_t columns) { return columns / unit_columns(bits) * unit_bytes(bits); }

}  // namespace channelwise

// Packs a checkpoint's rows, [outputs][row_bytes], code j in bits j·code_bits …, into panels of `bits` a code; bits
// may be wider than code_bits. table: value of every code, 256 entries. With 8 bits a panel's byte is the value itself,
// else the code. sums: Σ of the values of each output over its columns, padded to whole panels.
CHANNELWISE_EXPORT void channelwise_pack_quads(const uint8_t* packed, int64_t row_bytes, int64_t outputs,
                                               int64_t columns, int code_bits, int bits, const int8_t* table,
                                               uint8_t* panels, int32_t* sums, int threads);

// The inverse: what a panel's bytes hold, the code (with 8 bits the value), as [outputs][columns].
CHANNELWISE_EXPORT void channelwise_unpack_quads(const uint8_t* panels, int64_t outputs, int64_t columns, int bits,
                                                 int16_t* codes, int threads);
