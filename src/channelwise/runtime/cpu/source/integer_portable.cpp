// The integer product in plain C++, for any processor.
#include "integer_blocked.hpp"

namespace channelwise {
namespace {

template <int bits>
void expand_units(const int8_t* table, const uint8_t* from, int64_t units, int8_t* to) {
    for (; units > 0; --units, from += unit_bytes(bits), to += unit_chunks(bits) * chunk_bytes) {
        for (int i = 0; i < chunk_bytes; ++i) {
            const int a = from[i], b = unit_registers(bits) == 3 ? from[i + chunk_bytes] : 0,
                      c = unit_registers(bits) == 3 ? from[i + 2 * chunk_bytes] : 0;
            const int upper = a >> 6 | b >> 6 << 2 | c >> 6 << 4;
            const int code[8] = {a, bits == 6 ? b : a >> bits, bits == 6 ? c : bits == 3 ? b : a >> (2 * bits & 7),
                                 bits == 6 ? upper : bits == 3 ? b >> 3 : a >> 6, c, c >> 3, upper, upper >> 3};
            for (int chunk = 0; chunk < unit_chunks(bits); ++chunk) {
                const int value = bits == 8 ? a : table[code[chunk] & ((1 << bits) - 1)];
                to[chunk * chunk_bytes + i] = static_cast<int8_t>(value);
            }
        }
    }
}

struct Portable {
    static constexpr int64_t row_step = 4, panel_step = 1, depth = 1024, block_rows = 128, column_step = chunk_columns;
    static constexpr bool fetches_ahead = false;

    struct Session {
        Session() {}
    };

    static size_t input_bytes(const IntegerProduct&) { return 0; }
    static void arrange(const IntegerProduct&, uint8_t*, int, int) {}
    static const uint8_t* input(const IntegerProduct& p, const uint8_t*, int64_t row, int64_t column) {
        return p.codes + row * p.columns + column;
    }

    static void expand(int bits, const int8_t* table, const uint8_t* from, int64_t units, int8_t* to) {
        switch (bits) {
            case 8:
                return expand_units<8>(table, from, units, to);
            case 6:
                return expand_units<6>(table, from, units, to);
            case 4:
                return expand_units<4>(table, from, units, to);
            case 3:
                return expand_units<3>(table, from, units, to);
            default:
                return expand_units<2>(table, from, units, to);
        }
    }

    static void multiply(const IntegerProduct& p, const uint8_t* input, const int8_t* weights, int64_t, int64_t columns,
                         int32_t* sums, int64_t sums_stride, int64_t rows, int64_t, bool add) {
        for (int64_t row = 0; row < rows; ++row, input += p.columns, sums += sums_stride) {
            uint32_t total[panel_outputs] = {};
            if (add) std::memcpy(total, sums, sizeof total);
            for (int64_t column = 0; column < columns; column += chunk_columns) {
                const int8_t* chunk = weights + column * panel_outputs;
                for (int output = 0; output < panel_outputs; ++output) {
                    int sum = 0;
                    const int8_t* values = chunk + output * chunk_columns;
                    for (int i = 0; i < chunk_columns; ++i) sum += input[column + i] * values[i];
                    total[output] += static_cast<uint32_t>(sum);
                }
            }
            std::memcpy(sums, total, sizeof total);
        }
    }
};

}  // namespace

void product_portable(const IntegerProduct& product) { run_blocked<Portable>(product); }

}  // namespace channelwise
