// AVX-512: many rows of inputs times pair panels, with products of bfloat16 pairs on expanded blocks.
#include "weight_only_blocks.hpp"

namespace channelwise {
namespace {

struct VectorEngine {
    static constexpr int panels_at_once = 3;
    static constexpr int rows_at_once = 8;  // times three panels: 24 sums in registers

    explicit VectorEngine(int) {}

    // As TileEngine's, of whole tiles of inputs.
    template <int panels, class F>
    void multiply(int rows, const std::uint16_t* x, std::int64_t x_size, const std::uint16_t* values,
                  std::int64_t steps, float* sums, F&& between) const {
        multiply_rows_from<panels>(0, x, x_size, values, steps, sums, between);
        if (rows > rows_at_once) multiply_rows_from<panels>(rows_at_once, x, x_size, values, steps, sums, [] {});
    }

    template <int panels, class F>
    static void multiply_rows_from(int row, const std::uint16_t* x, std::int64_t x_size, const std::uint16_t* values,
                                   std::int64_t steps, float* sums, F&& between) {
        __m512 sum[panels][rows_at_once];
        for (auto& panel : sum) {
            for (auto& value : panel) value = _mm512_setzero_ps();
        }
        x += row * tile_columns;
        for (std::int64_t step = 0; step < steps; ++step, x += x_size, values += panels * tile_words) {
            for (int chunk = 0; chunk < tile_chunks; ++chunk) {
                __m512i weights[panels];
                for (int p = 0; p < panels; ++p) {
                    weights[p] = _mm512_loadu_si512(values + p * tile_words + chunk * chunk_words);
                }
#pragma GCC unroll 8
                for (int r = 0; r < rows_at_once; ++r) {
                    std::int32_t pair;
                    __builtin_memcpy(&pair, x + r * tile_columns + 2 * chunk, 4);
                    const __m512i inputs = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
                    for (int p = 0; p < panels; ++p) {
                        sum[p][r] = _mm512_dpbf16_ps(sum[p][r], (__m512bh)inputs, (__m512bh)weights[p]);
                    }
                }
            }
            between();
        }
        for (int p = 0; p < panels; ++p) {
            for (int r = 0; r < rows_at_once; ++r) _mm512_storeu_ps(sums + p * sums_size + (row + r) * 16, sum[p][r]);
        }
    }
};

}  // namespace

bool many_rows_avx512(const PairProduct& call) {
    const int pieces = pieces_of(call.x_type);
    // Three pieces take longer than float32 products of expanded rows, and so do scaled ones of more than one.
    if (pieces > (call.weight.down_columns ? 1 : 2)) return false;
    if (call.weight.down_columns) {
        multiply_rows<VectorEngine, ColumnScaling>(call, pieces);
    } else if (weights_are_rounded(call)) {
        multiply_rows<VectorEngine, RowScaling>(call, pieces);
    } else {
        multiply_rows<VectorEngine, NoScaling>(call, pieces);
    }
    return true;
}

}  // namespace channelwise
