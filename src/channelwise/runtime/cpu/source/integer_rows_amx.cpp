// The integer product of up to 32 rows with AMX tiles, bound by memory: panels are decoded step by step into a few
// slots, from where tiles take them at once, and sums never leave the tiles.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>

#include "integer_epilogue.hpp"
#include "integer_scratch.hpp"
#include "integer_tiles.hpp"
#include "panels_avx512.hpp"

namespace channelwise {
namespace {

constexpr int64_t pair = 2, slots = 4;

struct alignas(64) Slots {
    int8_t bytes[slots][pair][tile_bytes];
};

// Two panels with all rows; the second of an odd number of panels is the first again, and nobody reads its sums.
template <int bits>
struct PanelPair {
    const IntegerProduct& p;
    const uint8_t* inputs;
    Slots& decoded;
    const uint8_t* from[pair];
    __m512i table;

    PanelPair(const IntegerProduct& product, const uint8_t* arranged, Slots& slots, int64_t panel, int64_t panels)
        : p(product), inputs(arranged), decoded(slots), table(load_register(product.table)) {
        const int64_t bytes = panel_bytes(bits, p.columns);
        for (int64_t i = 0; i < pair; ++i) from[i] = p.panels + (panel + std::min(i, panels - 1)) * bytes;
    }

    // The weights of a step: where they lie, if that is a whole tile.
    const int8_t* weights(int64_t step, int64_t i) const {
        const int64_t columns = std::min(tile_columns, p.columns - step * tile_columns);
        const uint8_t* at = from[i] + panel_bytes(bits, step * tile_columns);
        if (bits == 8 && columns == tile_columns) return reinterpret_cast<const int8_t*>(at);
        int8_t* slot = decoded.bytes[step % slots][i];
        expand_units<bits>(table, at, columns / unit_columns(bits), slot);
        return slot;
    }

    // Up to 16 rows; steps alternate between two pairs of tiles, which need not wait for each other.
    void multiply_one(int32_t (*sums)[block_tile_rows]) const {
        const int64_t steps = tile_steps(p);
        for (int64_t step = 0; step < steps; step += 2) {
            _tile_loadd(4, inputs + step * 2 * tile_bytes, 64);
            _tile_loadd(6, weights(step, 0), 64);
            _tile_dpbusd(0, 4, 6);
            _tile_loadd(7, weights(step, 1), 64);
            _tile_dpbusd(1, 4, 7);
            if (step + 1 == steps) break;
            _tile_loadd(5, inputs + (step + 1) * 2 * tile_bytes, 64);
            _tile_loadd(6, weights(step + 1, 0), 64);
            _tile_dpbusd(2, 5, 6);
            _tile_loadd(7, weights(step + 1, 1), 64);
            _tile_dpbusd(3, 5, 7);
        }
        store(sums);
        for (int64_t row = 0; row < tile_rows; ++row) {
            for (int64_t i = 0; i < block_tile_rows; ++i) sums[row][i] += sums[row + tile_rows][i];
        }
    }

    // 17 to 32 rows.
    void multiply_two(int32_t (*sums)[block_tile_rows]) const {
        for (int64_t step = 0; step < tile_steps(p); ++step) {
            _tile_loadd(4, inputs + step * 2 * tile_bytes, 64);
            _tile_loadd(6, weights(step, 0), 64);
            _tile_dpbusd(0, 4, 6);
            _tile_loadd(7, weights(step, 1), 64);
            _tile_dpbusd(1, 4, 7);
            _tile_loadd(5, inputs + (step * 2 + 1) * tile_bytes, 64);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
        store(sums);
    }

    static void store(int32_t (*sums)[block_tile_rows]) {
        _tile_stored(0, sums[0], sizeof *sums);
        _tile_stored(1, sums[0] + panel_outputs, sizeof *sums);
        _tile_stored(2, sums[tile_rows], sizeof *sums);
        _tile_stored(3, sums[tile_rows] + panel_outputs, sizeof *sums);
    }
};

template <int bits>
void multiply_share(const IntegerProduct& p, const uint8_t* inputs, int64_t first, int64_t last) {
    Slots decoded{};
    alignas(64) int32_t sums[block_tile_rows][block_tile_rows];
    for (int64_t panel = first; panel < last; panel += pair) {
        const int64_t panels = std::min(pair, last - panel);
        const PanelPair<bits> product(p, inputs, decoded, panel, panels);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        if (p.rows > tile_rows) {
            product.multiply_two(sums);
        } else {
            product.multiply_one(sums);
        }
        finish_panels(p, panel, panels, 0, p.rows, sums[0], block_tile_rows);
    }
}

void multiply_share(const IntegerProduct& p, const uint8_t* inputs, int64_t first, int64_t last) {
    switch (p.bits) {
        case 8:
            return multiply_share<8>(p, inputs, first, last);
        case 6:
            return multiply_share<6>(p, inputs, first, last);
        case 4:
            return multiply_share<4>(p, inputs, first, last);
        case 3:
            return multiply_share<3>(p, inputs, first, last);
        default:
            return multiply_share<2>(p, inputs, first, last);
    }
}

}  // namespace

void few_rows_amx(const IntegerProduct& p) {
    uint8_t* inputs = scratch_of<uint8_t>(Scratch::inputs, static_cast<size_t>(arranged_bytes(p)));
    arrange_rows(p, inputs, 0, block_tile_rows);
    const int64_t panels = panels_of(p.outputs);
#pragma omp parallel num_threads(p.threads)
    {
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const TileSession session;
        multiply_share(p, inputs, panels * thread / threads, panels * (thread + 1) / threads);
    }
}

}  // namespace channelwise
