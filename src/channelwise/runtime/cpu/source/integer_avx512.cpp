// The integer product of many rows with AVX-512 VNNI: 6 rows × 4 panels of sums stay in registers. Inputs are put into
// the order of reading first: rows a power of two apart would share the sets of the caches.
#include <immintrin.h>

#include "integer_blocked.hpp"
#include "panels_avx512.hpp"

namespace channelwise {
namespace {

constexpr int most_rows = 6, most_panels = 4;

// Bytes of one chunk of columns of the rows of a block.
constexpr int input_step = most_rows * chunk_columns;

template <int rows, int panels>
void multiply_block(const uint8_t* input, const int8_t* weights, int64_t panel_stride, int64_t columns, int32_t* sums,
                    int64_t sums_stride, bool add) {
    __m512i total[rows][panels];
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (int panel = 0; panel < panels; ++panel) {
            const int32_t* from = sums + row * sums_stride + panel * panel_outputs;
            total[row][panel] = add ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
        }
    }
    for (; columns > 0; columns -= chunk_columns, weights += chunk_bytes, input += input_step) {
        __m512i chunk[panels];
#pragma GCC unroll 4
        for (int panel = 0; panel < panels; ++panel) chunk[panel] = load_register(weights + panel * panel_stride);
#pragma GCC unroll 8
        for (int row = 0; row < rows; ++row) {
            int32_t four;
            std::memcpy(&four, input + row * chunk_columns, sizeof four);
            const __m512i codes = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int panel = 0; panel < panels; ++panel) {
                total[row][panel] = _mm512_dpbusd_epi32(total[row][panel], codes, chunk[panel]);
            }
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
        for (int panel = 0; panel < panels; ++panel) {
            _mm512_storeu_si512(sums + row * sums_stride + panel * panel_outputs, total[row][panel]);
        }
    }
}

using Multiply = void (*)(const uint8_t*, const int8_t*, int64_t, int64_t, int32_t*, int64_t, bool);

constexpr Multiply multiplications[most_rows][most_panels] = {
    {multiply_block<1, 1>, multiply_block<1, 2>, multiply_block<1, 3>, multiply_block<1, 4>},
    {multiply_block<2, 1>, multiply_block<2, 2>, multiply_block<2, 3>, multiply_block<2, 4>},
    {multiply_block<3, 1>, multiply_block<3, 2>, multiply_block<3, 3>, multiply_block<3, 4>},
    {multiply_block<4, 1>, multiply_block<4, 2>, multiply_block<4, 3>, multiply_block<4, 4>},
    {multiply_block<5, 1>, multiply_block<5, 2>, multiply_block<5, 3>, multiply_block<5, 4>},
    {multiply_block<6, 1>, multiply_block<6, 2>, multiply_block<6, 3>, multiply_block<6, 4>},
};

struct Avx512 {
    static constexpr int64_t row_step = most_rows, panel_step = most_panels, depth = 512, block_rows = 516,
                             column_step = chunk_columns;
    static constexpr bool fetches_ahead = true;

    struct Session {
        Session() {}
    };

    static size_t input_bytes(const IntegerProduct& p) {
        return static_cast<size_t>(round_up(p.rows, row_step) * p.columns);
    }

    static const uint8_t* input(const IntegerProduct& p, const uint8_t* inputs, int64_t row, int64_t column) {
        return inputs + row * p.columns + column * row_step;
    }

    // [6 rows][chunk][row][4]
    static void arrange(const IntegerProduct& p, uint8_t* inputs, int thread, int threads) {
        const Range range = share(p.rows, 1, thread, threads);
        for (int64_t row = range.first; row < range.last; ++row) {
            const uint8_t* from = p.codes + row * p.columns;
            uint8_t* to = inputs + row / row_step * row_step * p.columns + row % row_step * chunk_columns;
            for (int64_t column = 0; column < p.columns; column += chunk_columns, to += input_step) {
                std::memcpy(to, from + column, chunk_columns);
            }
        }
    }

    static void expand(int bits, const int8_t* table, const uint8_t* from, int64_t units, int8_t* to) {
        expand_panel(bits, table, from, units, to);
    }

    static void multiply(const IntegerProduct&, const uint8_t* input, const int8_t* weights, int64_t panel_stride,
                         int64_t columns, int32_t* sums, int64_t sums_stride, int64_t rows, int64_t panels, bool add) {
        multiplications[rows - 1][panels - 1](input, weights, panel_stride, columns, sums, sums_stride, add);
    }
};

}  // namespace

void product_avx512(const IntegerProduct& product) { run_blocked<Avx512>(product); }

}  // namespace channelwise
