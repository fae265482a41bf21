// From the checkpoint's rows, dense little-endian bit streams, to pair panels, and back for tests.
#include <cstring>

#include "weight_only.hpp"
#include "weight_only_units.hpp"

namespace channelwise {
namespace {

struct Codes {
    std::int64_t rows, columns, bytes_per_row;
    int bits;  // of a code in the stream, at most that of the panels
};

// Eight codes of a stream of n-bit codes from its byte `stream` on, all of which are there.
template <int bits>
inline void spread_eight(const std::uint8_t* stream, std::uint8_t* out) {
    constexpr unsigned mask = (1u << bits) - 1;
    std::uint64_t word = 0;
    std::memcpy(&word, stream, bits);
    for (int i = 0; i < 8; ++i) out[i] = static_cast<std::uint8_t>(word >> (i * bits) & mask);
}

// Eight codes of n bits from position `first` (a multiple of eight) of a stream of n-bit codes; past its end, zeros.
inline void read_eight(const std::uint8_t* stream, const Codes& codes, std::int64_t first, std::uint8_t* out) {
    const std::int64_t start = first / 8 * codes.bits;
    std::int64_t available = codes.bytes_per_row - start;
    available = available < 0 ? 0 : available < codes.bits ? available : codes.bits;
    std::uint64_t word = 0;
    std::memcpy(&word, stream + (available ? start : 0), static_cast<std::size_t>(available));
    const unsigned mask = (1u << codes.bits) - 1;
    for (int i = 0; i < 8; ++i) out[i] = static_cast<std::uint8_t>(word >> (i * codes.bits) & mask);
}

// All panel units of one output: words of lane `output` in every register.
template <int bits>
void pack_row(const std::uint8_t* stream, const Codes& codes, std::int64_t units, std::uint8_t* lane) {
    using U = Unit<bits>;
    constexpr int step = U::columns < 8 ? 8 : U::columns;
    std::uint8_t code[step];
    for (std::int64_t unit = 0; unit < units; ++unit, lane += U::bytes) {
        const std::int64_t column = unit * U::columns;
        const int inside = static_cast<int>(column % step);
        if (inside == 0) {
            for (int i = 0; i < step; i += 8) {
                const std::int64_t start = (column + i) / 8 * bits;
                if (codes.bits == bits && start + bits <= codes.bytes_per_row) {
                    spread_eight<bits>(stream + start, code + i);
                } else {
                    read_eight(stream, codes, column + i, code + i);
                }
            }
        }
        std::uint16_t word[2][3] = {};
        unrolled<U::chunks>([&](auto chunk) {
            constexpr int c = decltype(chunk)::value;
            put_code<bits, c>(word[0], code[inside + 2 * c]);
            put_code<bits, c>(word[1], code[inside + 2 * c + 1]);
        });
        for (int r = 0; r < U::registers; ++r) {
            const std::uint16_t pair[2] = {word[0][r], word[1][r]};
            std::memcpy(lane + 64 * r, pair, 4);
        }
    }
}

template <int bits>
void pack_panels(const std::uint8_t* packed, const Codes& codes, std::uint8_t* panels, int threads) {
    using U = Unit<bits>;
    const std::int64_t units = (codes.columns + U::columns - 1) / U::columns;
    const std::int64_t count = (codes.rows + 15) / 16;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t panel = 0; panel < count; ++panel) {
        std::uint8_t* target = panels + panel * units * U::bytes;
        for (int output = 0; output < 16; ++output) {
            const std::int64_t row = 16 * panel + output;
            Codes present = codes;
            if (row >= codes.rows) present.bytes_per_row = 0;
            const std::uint8_t* stream = packed + (row < codes.rows ? row : 0) * codes.bytes_per_row;
            pack_row<bits>(stream, present, units, target + 4 * output);
        }
    }
}

template <int bits>
void unpack_panels(const std::uint8_t* panels, std::int64_t rows, std::int64_t columns, std::uint8_t* codes) {
    using U = Unit<bits>;
    const std::int64_t units = (columns + U::columns - 1) / U::columns;
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::uint8_t* lane = panels + row / 16 * units * U::bytes + 4 * (row % 16);
        for (std::int64_t column = 0; column < columns; ++column) {
            std::uint16_t word[3] = {};
            for (int r = 0; r < U::registers; ++r) {
                std::memcpy(word + r, lane + column / U::columns * U::bytes + 64 * r + 2 * (column % 2), 2);
            }
            const int chunk = static_cast<int>(column % U::columns / 2);
            unrolled<U::chunks>([&](auto index) {
                constexpr int c = decltype(index)::value;
                if (c == chunk) codes[row * columns + column] = static_cast<std::uint8_t>(code_of<bits, c>(word));
            });
        }
    }
}

}  // namespace
}  // namespace channelwise

// packed: [rows][⌈columns · bits / 8⌉]; panels: as in `PairPanels`, of `width` ≥ bits. 1 for a width without panels.
CHANNELWISE_EXPORT int channelwise_pack_pairs(const std::uint8_t* packed, std::int64_t rows, std::int64_t columns,
                                              int bits, int width, std::uint8_t* panels, int threads) {
    using namespace channelwise;
    const Codes codes{rows, columns, (columns * bits + 7) / 8, bits};
    return for_width(width, [&](auto w) { pack_panels<decltype(w)::value>(packed, codes, panels, threads); }) ? 0 : 1;
}

// The inverse for tests: codes uint8 [rows][columns].
CHANNELWISE_EXPORT int channelwise_unpack_pairs(const std::uint8_t* panels, std::int64_t rows, std::int64_t columns,
                                                int width, std::uint8_t* codes) {
    using namespace channelwise;
    return for_width(width, [&](auto w) { unpack_panels<decltype(w)::value>(panels, rows, columns, codes); }) ? 0 : 1;
}
