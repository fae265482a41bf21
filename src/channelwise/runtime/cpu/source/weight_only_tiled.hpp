// AVX-512: a call's inputs in tiles of 16 rows and 32 columns, as bfloat16 pieces.
// Only for files compiled for AVX-512.
#pragma once

#include "weight_only_rows.hpp"

namespace channelwise {
namespace {

constexpr int tile_rows = 16, tile_columns = 32;
constexpr std::int64_t tile_words = tile_rows * tile_columns;

// The call's inputs in tiles, [row tile][column tile][16][32]. The pieces of a row are next to each other in one tile.
struct TiledInputs {
    int pieces;
    std::int64_t rows, rows_per_tile, row_tiles, column_tiles;
    std::uint16_t* words;
    float* sums;  // [group][row tile][16]; null without zero points along rows

    TiledInputs(const PairProduct& call, int pieces)
        : pieces(pieces), rows(call.rows), rows_per_tile(tile_rows / pieces),
          row_tiles((rows + rows_per_tile - 1) / rows_per_tile),
          column_tiles((call.weight.padded + tile_columns - 1) / tile_columns), words(nullptr), sums(nullptr) {}

    // Few rows make small tiles: with a stride of whole ones, they would meet in a few sets of the cache.
    int rows_in_tiles() const { return static_cast<int>(smaller(rows, rows_per_tile)) * pieces; }
    std::int64_t tile_size() const { return rows_in_tiles() * tile_columns; }
    std::int64_t size() const { return row_tiles * column_tiles * tile_size(); }
    RowLayout layout() const { return {column_tiles * tile_columns, tile_size(), tile_columns}; }
    std::int64_t place(std::int64_t row) const { return row % rows_per_tile * pieces; }
    std::uint16_t* row(std::int64_t row) const {
        return words + row / rows_per_tile * column_tiles * tile_size() + place(row) * tile_columns;
    }
    const std::uint16_t* tile(std::int64_t row_tile, std::int64_t column_tile) const {
        return words + (row_tile * column_tiles + column_tile) * tile_size();
    }
};

// Along rows: a thread's part of the inputs and of their sums over groups, which are those of the first piece.
inline void fill_tiles(const PairProduct& call, const TiledInputs& inputs, Range rows) {
    const PairPanels& weight = call.weight;
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const void* x = row_of(call.x, call.x_type, row * call.x_stride);
        split_row(x, call.x_type, weight.columns, inputs.pieces, inputs.row(row), inputs.layout());
        if (inputs.sums) {
            const std::int64_t stride = inputs.row_tiles * 16;
            float* sums = inputs.sums + row / inputs.rows_per_tile * 16 + inputs.place(row);
            group_sums(x, call.x_type, weight.columns, weight.group, sums, stride);
            for (int piece = 1; piece < inputs.pieces; ++piece) {
                for (std::int64_t group = 0; group < weight.groups; ++group) sums[group * stride + piece] = 0.0f;
            }
        }
    }
}

}  // namespace
}  // namespace channelwise
