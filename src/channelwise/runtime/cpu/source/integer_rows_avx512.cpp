// The integer product of a few rows with AVX-512 VNNI, bound by memory: every thread reads its panels once, in order,
// and multiplies codes as it decodes them. Several panels at a time give independent sums, which hide the latency.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>

#include "integer_epilogue.hpp"
#include "panels_avx512.hpp"

namespace channelwise {
namespace {

constexpr int64_t prefetch_bytes = 2048;

constexpr int registers_for_inputs = 24;

template <int bits, int rows, int panels>
void multiply_panels(const IntegerProduct& p, int64_t row, int64_t panel) {
    const __m512i table = bits == 8 ? _mm512_setzero_si512() : load_register(p.table);
    const int64_t bytes = panel_bytes(bits, p.columns);
    const uint8_t* from = p.panels + panel * bytes;
    const uint8_t* codes = p.codes + row * p.columns;
    __m512i total[rows][panels];
    for (auto& sums : total) {
        for (__m512i& sum : sums) sum = _mm512_setzero_si512();
    }
    const uint8_t* last = from + bytes - prefetch_bytes;
    for (int64_t column = 0; column < p.columns; column += unit_columns(bits), from += unit_bytes(bits)) {
        // Behind the end of these panels lie those that come next.
        const int64_t ahead = prefetch_bytes + (from < last ? 0 : (panels - 1) * bytes);
#pragma GCC unroll 4
        for (int i = 0; i < panels; ++i) {
            // Many inputs kept for the next panel would not fit into registers: they are read again.
            const uint8_t* inputs = codes;
            if constexpr (rows * unit_chunks(bits) > registers_for_inputs) __asm__ volatile("" : "+r"(inputs));
            __m512i values[unit_chunks(bits)];
            decode_unit<bits>(table, from + i * bytes, values);
#pragma GCC unroll 3
            for (int line = 0; line < unit_bytes(bits); line += chunk_bytes) {
                _mm_prefetch(from + i * bytes + line + ahead, _MM_HINT_T0);
            }
#pragma GCC unroll 8
            for (int chunk = 0; chunk < unit_chunks(bits); ++chunk) {
#pragma GCC unroll 8
                for (int j = 0; j < rows; ++j) {
                    int32_t four;
                    std::memcpy(&four, inputs + j * p.columns + column + chunk * chunk_columns, sizeof four);
                    total[j][i] = _mm512_dpbusd_epi32(total[j][i], _mm512_set1_epi32(four), values[chunk]);
                }
            }
        }
    }
    alignas(64) int32_t sums[rows][panels][panel_outputs];
    for (int j = 0; j < rows; ++j) {
        for (int i = 0; i < panels; ++i) _mm512_store_si512(sums[j][i], total[j][i]);
    }
    finish_panels(p, panel, panels, row, rows, sums[0][0], panels * panel_outputs);
}

constexpr int64_t most_rows = 8;

// Panels at a time: as many as registers hold sums for.
constexpr int panels_for(int64_t rows) { return rows <= 4 ? 4 : 2; }

template <int bits, int rows>
void multiply_some(const IntegerProduct& p, int64_t row, int64_t panel, int64_t panels) {
    if (panels == panels_for(rows)) return multiply_panels<bits, rows, panels_for(rows)>(p, row, panel);
    for (int64_t i = 0; i < panels; ++i) multiply_panels<bits, rows, 1>(p, row, panel + i);
}

template <int bits>
void multiply_rows(const IntegerProduct& p, int64_t row, int64_t rows, int64_t panel, int64_t panels) {
    switch (rows) {
        case 1:
            return multiply_some<bits, 1>(p, row, panel, panels);
        case 2:
            return multiply_some<bits, 2>(p, row, panel, panels);
        case 3:
            return multiply_some<bits, 3>(p, row, panel, panels);
        case 4:
            return multiply_some<bits, 4>(p, row, panel, panels);
        case 5:
            return multiply_some<bits, 5>(p, row, panel, panels);
        case 6:
            return multiply_some<bits, 6>(p, row, panel, panels);
        case 7:
            return multiply_some<bits, 7>(p, row, panel, panels);
        default:
            return multiply_some<bits, 8>(p, row, panel, panels);
    }
}

// Panels in order; where rows make several blocks, a panel is still in the cache for all but the first.
template <int bits>
void multiply_share(const IntegerProduct& p, int64_t first, int64_t last) {
    const int64_t blocks = (p.rows + most_rows - 1) / most_rows, block = (p.rows + blocks - 1) / blocks;
    const int64_t step = panels_for(block);
    for (int64_t panel = first; panel < last; panel += step) {
        const int64_t panels = std::min(step, last - panel);
        for (int64_t row = 0; row < p.rows; row += block) {
            multiply_rows<bits>(p, row, std::min(block, p.rows - row), panel, panels);
        }
    }
}

void multiply_share(const IntegerProduct& p, int64_t first, int64_t last) {
    switch (p.bits) {
        case 8:
            return multiply_share<8>(p, first, last);
        case 6:
            return multiply_share<6>(p, first, last);
        case 4:
            return multiply_share<4>(p, first, last);
        case 3:
            return multiply_share<3>(p, first, last);
        default:
            return multiply_share<2>(p, first, last);
    }
}

}  // namespace

void few_rows_avx512(const IntegerProduct& p) {
    const int64_t panels = panels_of(p.outputs);
#pragma omp parallel num_threads(p.threads)
    {
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        multiply_share(p, panels * thread / threads, panels * (thread + 1) / threads);
    }
}

}  // namespace channelwise
