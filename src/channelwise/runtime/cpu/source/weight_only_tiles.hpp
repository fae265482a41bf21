// AMX: the tile instructions with tile numbers as template arguments, and the shapes that tiles are given.
// Only for files compiled for AMX.
#pragma once

#include "weight_only_tiled.hpp"

namespace channelwise {
namespace {

// Sums in tiles 0 … 3, inputs in tile 4, weights in tiles 5 … 7.
constexpr int input_tile = 4, weight_tile = 5, weight_tiles = 3;

struct alignas(64) TileConfiguration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes_per_row[16] = {};
    std::uint8_t rows[16] = {};

    explicit TileConfiguration(int input_rows) {
        for (int tile = 0; tile < 8; ++tile) {
            bytes_per_row[tile] = 64;
            rows[tile] = static_cast<std::uint8_t>(tile <= input_tile ? input_rows : tile_rows);
        }
    }
};

// The thread's tiles for as long as it lives.
class Tiles {
public:
    explicit Tiles(int input_rows) {
        const TileConfiguration configuration(input_rows);
        __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
    }
    ~Tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

template <int tile>
inline void clear_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
}

template <int tile>
inline void load_tile(const void* source) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(source), "r"(std::int64_t{64}), "i"(tile) : "memory");
}

template <int tile>
inline void store_tile(void* target) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(target), "r"(std::int64_t{64}), "i"(tile) : "memory");
}

// sums += inputs · weights, of bfloat16 pairs.
template <int sums, int inputs, int weights>
inline void multiply_tiles() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(inputs), "i"(weights));
}

}  // namespace
}  // namespace channelwise
