// AMX: rows of inputs times pair panels in tiles. Lattice values are exact in bfloat16 and inputs are split into exact
// pieces, so a group's sums are float32 sums of the true products; scales and zero points are applied to them.
#include "weight_only_blocks.hpp"
#include "weight_only_tiles.hpp"

namespace channelwise {
namespace {

// Few rows leave the time to whatever expands the panels, so two at a time; many gain by loading inputs for four.
template <int most_panels>
struct TileEngine {
    static constexpr int panels_at_once = most_panels;

    explicit TileEngine(int rows) : tiles(rows) {}

    // Sums of one tile of inputs, some rows of which count, over a block, [panel][16][16]; between() follows each step.
    template <int panels, class F>
    void multiply(int, const std::uint16_t* x, std::int64_t x_size, const std::uint16_t* values, std::int64_t steps,
                  float* sums, F&& between) const {
        unrolled<panels>([](auto p) { clear_tile<decltype(p)::value>(); });
        for (std::int64_t step = 0; step < steps; ++step) {
            load_tile<input_tile>(x + step * x_size);
            unrolled<panels>([&](auto index) {
                constexpr int p = decltype(index)::value, tile = weight_tile + p % weight_tiles;
                load_tile<tile>(values + (step * panels + p) * tile_words);
                multiply_tiles<p, input_tile, tile>();
            });
            between();
        }
        unrolled<panels>([&](auto p) { store_tile<decltype(p)::value>(sums + decltype(p)::value * sums_size); });
    }

    const Tiles tiles;
};

}  // namespace

bool few_rows_amx(const PairProduct& call) {
    const int own = pieces_of(call.x_type), pieces = call.weight.down_columns && own == 1 ? 2 : own;
    // One row is as fast without tiles, which would be mostly empty.
    if (call.rows * pieces == 1) return few_rows_avx512(call);
    multiply_rows<TileEngine<2>, NoScaling>(call, pieces);
    return true;
}

bool many_rows_amx(const PairProduct& call) {
    const int pieces = pieces_of(call.x_type);
    if (!call.weight.down_columns) {
        if (weights_are_rounded(call)) {
            multiply_rows<TileEngine<4>, RowScaling>(call, pieces);
        } else {
            multiply_rows<TileEngine<4>, NoScaling>(call, pieces);
        }
        return true;
    }
    if (pieces > 1) return false;
    multiply_rows<TileEngine<4>, ColumnScaling>(call, pieces);
    return true;
}

}  // namespace channelwise
