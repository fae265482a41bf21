// The integer product of many rows with AMX tiles: 32 rows × 2 panels of sums stay in tiles, 64 columns a step. Inputs
// are put into tile order first; a step of a decoded panel is a tile as it lies.
#include <immintrin.h>

#include "integer_blocked.hpp"
#include "integer_tiles.hpp"
#include "panels_avx512.hpp"

namespace channelwise {
namespace {

// For 16 < rows ≤ 32.
void multiply_two(const uint8_t* input, const int8_t* weights, int64_t panel_stride, int64_t steps, int32_t* sums,
                  int64_t stride, bool add) {
    const int64_t bytes = stride * 4;
    int32_t* below = sums + tile_rows * stride;
    if (add) {
        _tile_loadd(0, sums, bytes);
        _tile_loadd(1, sums + panel_outputs, bytes);
        _tile_loadd(2, below, bytes);
        _tile_loadd(3, below + panel_outputs, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (; steps > 0; --steps, input += 2 * tile_bytes, weights += tile_bytes) {
        _tile_loadd(4, input, 64);
        _tile_loadd(6, weights, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, weights + panel_stride, 64);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(5, input + tile_bytes, 64);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + panel_outputs, bytes);
    _tile_stored(2, below, bytes);
    _tile_stored(3, below + panel_outputs, bytes);
}

// For up to 16 rows.
void multiply_one(const uint8_t* input, const int8_t* weights, int64_t panel_stride, int64_t steps, int32_t* sums,
                  int64_t stride, bool add) {
    const int64_t bytes = stride * 4;
    if (add) {
        _tile_loadd(0, sums, bytes);
        _tile_loadd(1, sums + panel_outputs, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    for (; steps > 0; --steps, input += 2 * tile_bytes, weights += tile_bytes) {
        _tile_loadd(4, input, 64);
        _tile_loadd(6, weights, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, weights + panel_stride, 64);
        _tile_dpbusd(1, 4, 7);
    }
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + panel_outputs, bytes);
}

struct Amx {
    static constexpr int64_t row_step = block_tile_rows, panel_step = 2, depth = 1024, block_rows = 512,
                             column_step = tile_columns;
    static constexpr bool fetches_ahead = false;

    using Session = TileSession;

    static size_t input_bytes(const IntegerProduct& p) {
        return static_cast<size_t>(arranged_bytes(p));
    }

    static const uint8_t* input(const IntegerProduct& p, const uint8_t* inputs, int64_t row, int64_t column) {
        return inputs + row * tile_steps(p) * tile_columns + column * row_step;
    }

    static void arrange(const IntegerProduct& p, uint8_t* inputs, int thread, int threads) {
        const Range range = share(round_up(p.rows, row_step), 1, thread, threads);
        arrange_rows(p, inputs, range.first, range.last);
    }

    static void expand(int bits, const int8_t* table, const uint8_t* from, int64_t units, int8_t* to) {
        expand_panel(bits, table, from, units, to);
    }

    static void multiply(const IntegerProduct&, const uint8_t* input, const int8_t* weights, int64_t panel_stride,
                         int64_t columns, int32_t* sums, int64_t sums_stride, int64_t rows, int64_t panels, bool add) {
        // The second of an odd number of panels is the first again; nobody reads its sums.
        const int64_t second = panels == 2 ? panel_stride : 0, count = (columns + tile_columns - 1) / tile_columns;
        const auto run = rows > tile_rows ? multiply_two : multiply_one;
        run(input, weights, second, count, sums, sums_stride, add);
    }
};

}  // namespace

void product_amx(const IntegerProduct& product) { run_blocked<Amx>(product); }

}  // namespace channelwise
