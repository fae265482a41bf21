// AMX tiles for the integer product: their shapes, and inputs in tile order. For the AMX files only.
#pragma once

#include <immintrin.h>

#include "integer.hpp"

namespace channelwise {
namespace {

constexpr int64_t tile_rows = 16, tile_columns = 64, tile_bytes = tile_rows * tile_columns;

// Tiles 0–3 hold sums, 4 and 5 inputs, 6 and 7 weights: all of 16 rows of 64 bytes.
struct alignas(64) TileShapes {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The tiles' shapes, while it lives.
struct TileSession {
    TileSession() {
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
    }
    ~TileSession() { _tile_release(); }
};

// Rows that lie together in tile order: two tiles.
constexpr int64_t block_tile_rows = 2 * tile_rows;

inline int64_t tile_steps(const IntegerProduct& p) { return (p.columns + tile_columns - 1) / tile_columns; }

inline int64_t arranged_bytes(const IntegerProduct& p) {
    return round_up(p.rows, block_tile_rows) * tile_steps(p) * tile_columns;
}

// Puts rows in tile order, [32 rows][step][row][64]: rows and columns beyond the input's are zeros.
inline void arrange_rows(const IntegerProduct& p, uint8_t* inputs, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
        const int64_t block = row / block_tile_rows * block_tile_rows;
        uint8_t* to = inputs + (block * tile_steps(p) + row % block_tile_rows) * tile_columns;
        for (int64_t column = 0; column < p.columns; column += tile_columns, to += block_tile_rows * tile_columns) {
            const int64_t left = row < p.rows ? p.columns - column : 0;
            const __mmask64 mask = left >= tile_columns ? ~0ull : (1ull << left) - 1;
            _mm512_storeu_si512(to, _mm512_maskz_loadu_epi8(mask, p.codes + row * p.columns + column));
        }
    }
}

}  // namespace
}  // namespace channelwise
