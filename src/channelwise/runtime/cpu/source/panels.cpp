// Packing of a checkpoint's rows into quad panels, and back. A chunk's four bytes of one output are one 32-bit word
// here: shifts by less than a byte's free bits keep its bytes apart.
#include "panels.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace channelwise {
namespace {

constexpr int codes_per_step = 8;

// A row's codes as bytes: eight at a time, which are `bits` whole bytes of the stream.
template <int bits>
void spread_row(const uint8_t* row, int64_t row_bytes, int64_t columns, uint8_t* codes) {
    constexpr uint64_t mask = (1u << bits) - 1;
    const int64_t whole = std::min(columns / codes_per_step, row_bytes / bits) * codes_per_step;
    for (int64_t column = 0; column < whole; column += codes_per_step, row += bits, row_bytes -= bits) {
        uint64_t word = 0;
        std::memcpy(&word, row, bits);
        for (int i = 0; i < codes_per_step; ++i) codes[column + i] = static_cast<uint8_t>(word >> (bits * i) & mask);
    }
    uint64_t word = 0;
    if (row_bytes > 0) std::memcpy(&word, row, static_cast<size_t>(std::min<int64_t>(8, row_bytes)));
    for (int64_t i = 0; whole + i < columns; ++i) codes[whole + i] = static_cast<uint8_t>(word >> (bits * i) & mask);
}

template <>
void spread_row<8>(const uint8_t* row, int64_t, int64_t columns, uint8_t* codes) {
    std::copy(row, row + columns, codes);
}

using SpreadRow = void (*)(const uint8_t*, int64_t, int64_t, uint8_t*);

constexpr SpreadRow spread_rows[] = {nullptr,       nullptr,       spread_row<2>, spread_row<3>, spread_row<4>,
                                     spread_row<5>, spread_row<6>, spread_row<7>, spread_row<8>};

constexpr uint32_t low_pairs = 0x03030303u;

// One unit's words of one output: chunks in, registers out.
inline void join(int bits, const uint32_t* chunk, uint32_t* word) {
    switch (bits) {
        case 8:
            word[0] = chunk[0];
            return;
        case 4:
            word[0] = chunk[0] | chunk[1] << 4;
            return;
        case 2:
            word[0] = chunk[0] | chunk[1] << 2 | chunk[2] << 4 | chunk[3] << 6;
            return;
        case 6:
            for (int i = 0; i < 3; ++i) word[i] = chunk[i] | (chunk[3] >> (2 * i) & low_pairs) << 6;
            return;
        default: {
            const uint32_t upper = chunk[6] | chunk[7] << 3;
            for (int i = 0; i < 3; ++i) {
                word[i] = chunk[2 * i] | chunk[2 * i + 1] << 3 | (upper >> (2 * i) & low_pairs) << 6;
            }
        }
    }
}

// The inverse of `join`.
void split(int bits, const uint32_t* word, uint32_t* chunk) {
    const uint32_t mask = 0x01010101u * ((1u << bits) - 1);
    const auto upper = [&] {
        uint32_t joined = 0;
        for (int i = 0; i < 3; ++i) joined |= (word[i] >> 6 & low_pairs) << (2 * i);
        return joined;
    };
    switch (bits) {
        case 8:
            chunk[0] = word[0];
            return;
        case 4:
        case 2:
            for (int i = 0; i < unit_chunks(bits); ++i) chunk[i] = word[0] >> (bits * i) & mask;
            return;
        case 6:
            for (int i = 0; i < 3; ++i) chunk[i] = word[i] & mask;
            chunk[3] = upper();
            return;
        default:
            for (int i = 0; i < 6; ++i) chunk[i] = word[i / 2] >> (3 * (i % 2)) & mask;
            chunk[6] = upper() & mask;
            chunk[7] = upper() >> 3 & mask;
    }
}

// What codes stand for: all but the last a straight line, as whole numbers are, or anything.
class Values {
public:
    Values(const int8_t* table, int bits) : table_(table), last_((1 << bits) - 1) {
        for (int i = 0; i < last_; ++i) straight_ = straight_ && table[i] == table[0] + i;
    }

    // Puts a row's values in the place of its codes, and back if they are not to stay; returns their sum.
    int32_t sum(uint8_t* codes, int64_t columns, bool replace) const {
        if (!straight_) {
            int32_t sum = 0;
            for (int64_t column = 0; column < columns; ++column) {
                const int8_t value = table_[codes[column]];
                sum += value;
                if (replace) codes[column] = static_cast<uint8_t>(value);
            }
            return sum;
        }
        // The line is followed beyond the last code, too; what that makes of it is mended afterwards.
        const auto first = static_cast<uint8_t>(table_[0]), last = static_cast<uint8_t>(last_);
        const auto beyond = static_cast<uint8_t>(first + last);
        int32_t sum = 0, lasts = 0;
        for (int64_t column = 0; column < columns; ++column) {
            lasts += codes[column] == last;
            sum += codes[column];
        }
        sum += static_cast<int32_t>(columns) * table_[0] + lasts * (table_[last_] - last_ - table_[0]);
        if (!replace) return sum;
        const auto own = static_cast<uint8_t>(table_[last_]);
        for (int64_t column = 0; column < columns; ++column) codes[column] = static_cast<uint8_t>(codes[column] + first);
        if (lasts == 0 || own == beyond) return sum;
        for (int64_t column = 0; column < columns; ++column) codes[column] = codes[column] == beyond ? own : codes[column];
        return sum;
    }

private:
    const int8_t* table_;
    int last_;
    bool straight_ = true;
};

// 16 rows of codes, [16][columns], as one panel.
template <int bits>
void join_panel(const uint8_t* codes, int64_t columns, uint8_t* panel) {
    constexpr int chunks = unit_chunks(bits), registers = unit_registers(bits);
    for (int64_t unit = 0; unit < columns / unit_columns(bits); ++unit, panel += unit_bytes(bits)) {
        for (int output = 0; output < panel_outputs; ++output) {
            uint32_t chunk[8], word[3];
            std::memcpy(chunk, codes + output * columns + unit * unit_columns(bits), chunks * chunk_columns);
            join(bits, chunk, word);
            for (int i = 0; i < registers; ++i) {
                std::memcpy(panel + i * chunk_bytes + output * chunk_columns, word + i, sizeof(word[i]));
            }
        }
    }
}

void join_panel(const uint8_t* codes, int64_t columns, int bits, uint8_t* panel) {
    switch (bits) {
        case 8:
            return join_panel<8>(codes, columns, panel);
        case 6:
            return join_panel<6>(codes, columns, panel);
        case 4:
            return join_panel<4>(codes, columns, panel);
        case 3:
            return join_panel<3>(codes, columns, panel);
        default:
            return join_panel<2>(codes, columns, panel);
    }
}

}  // namespace
}  // namespace channelwise

using namespace channelwise;

void channelwise_pack_quads(const uint8_t* packed, int64_t row_bytes, int64_t outputs, int64_t columns, int code_bits,
                            int bits, const int8_t* table, uint8_t* panels, int32_t* sums, int threads) {
    const int64_t padded = round_up(columns, unit_columns(bits));
    const Values values(table, code_bits);
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint8_t> codes(static_cast<size_t>(panel_outputs * padded));
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < panels_of(outputs); ++panel) {
            std::fill(codes.begin(), codes.end(), uint8_t{0});
            for (int64_t lane = 0; lane < panel_outputs; ++lane) {
                const int64_t output = panel * panel_outputs + lane;
                sums[output] = 0;
                if (output >= outputs) continue;
                uint8_t* row = codes.data() + lane * padded;
                spread_rows[code_bits](packed + output * row_bytes, row_bytes, columns, row);
                sums[output] = values.sum(row, columns, bits == 8);
            }
            join_panel(codes.data(), padded, bits, panels + panel * panel_bytes(bits, padded));
        }
    }
}

void channelwise_unpack_quads(const uint8_t* panels, int64_t outputs, int64_t columns, int bits, int16_t* codes,
                              int threads) {
    const int64_t padded = round_up(columns, unit_columns(bits));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t output = 0; output < outputs; ++output) {
        const int64_t lane = output % panel_outputs;
        const uint8_t* unit = panels + output / panel_outputs * panel_bytes(bits, padded) + lane * chunk_columns;
        for (int64_t first = 0; first < columns; first += unit_columns(bits), unit += unit_bytes(bits)) {
            uint32_t word[3] = {}, chunk[8];
            for (int i = 0; i < unit_registers(bits); ++i) std::memcpy(word + i, unit + i * chunk_bytes, 4);
            split(bits, word, chunk);
            const int64_t count = std::min<int64_t>(unit_columns(bits), columns - first);
            for (int64_t i = 0; i < count; ++i) {
                const auto byte = static_cast<uint8_t>(chunk[i / 4] >> (8 * (i % 4)));
                codes[output * columns + first + i] = bits == 8 ? static_cast<int8_t>(byte) : byte;
            }
        }
    }
}
