// Products of many rows, the same for every level: panels are decoded some at a time into a buffer that stays in the
// first cache, multiplied with all rows of a block, and their sums gathered in the second cache until all columns are
// in. A level's Kernel, a type in an anonymous namespace, brings the numbers and the inner functions:
//   row_step, panel_step   rows and panels of one multiplication;  depth: columns of one, a multiple of 64
//   block_rows             rows that share one decoding of the weight
//   column_step            weights of 8 bits are read where they lie if columns are a multiple of it
//   fetches_ahead          whether it gains from fetching the next weights early (AMX loses by a third)
//   input_bytes(p), arrange(p, inputs, thread, threads)   the inputs in the kernel's own order, if it has one
//   input(p, inputs, row, column)    what `multiply` takes for rows from a multiple of row_step
//   expand(bits, table, from, units, to)   decodes units of one panel
//   multiply(p, input, weights, panel_stride, columns, sums, sums_stride, rows, panels, add)
#pragma once

#include <omp.h>

#include <algorithm>

#include "integer.hpp"
#include "integer_epilogue.hpp"
#include "integer_scratch.hpp"

namespace channelwise {
namespace {

constexpr int64_t cache_line = 64;

struct Range {
    int64_t first, last;
};

// The part of `count` things, whole steps but for the last, that a thread works on.
inline Range share(int64_t count, int64_t step, int thread, int threads) {
    const int64_t steps = (count + step - 1) / step;
    const int64_t first = steps * thread / threads * step, last = steps * (thread + 1) / threads * step;
    return {std::min(first, count), std::min(last, count)};
}

template <class Kernel>
struct BlockedProduct {
    const IntegerProduct& p;
    const uint8_t* inputs;
    int8_t* buffer;
    int32_t* sums;

    // The weights of some panels and columns, decoded, or where they lie.
    const int8_t* weights(int64_t panel, int64_t panels, int64_t column, int64_t columns, int64_t& stride) const {
        const int64_t bytes = panel_bytes(p.bits, p.columns);
        const uint8_t* from = p.panels + panel * bytes + panel_bytes(p.bits, column);
        if (p.bits == 8 && columns % Kernel::column_step == 0) {
            stride = bytes;
            return reinterpret_cast<const int8_t*>(from);
        }
        stride = Kernel::depth * panel_outputs;
        for (int64_t i = 0; i < panels; ++i) {
            Kernel::expand(p.bits, p.table, from + i * bytes, columns / unit_columns(p.bits), buffer + i * stride);
        }
        return buffer;
    }

    // Outputs are fetched while the last of their products are computed: they would be waited for otherwise.
    void prefetch_outputs(int64_t row, int64_t rows, int64_t panel) const {
        const int64_t bytes = p.epilogue.type == Output::bfloat16 || p.epilogue.type == Output::float16 ? 2 : 4;
        const auto* out = static_cast<const char*>(p.epilogue.out) + (row * p.outputs + panel * panel_outputs) * bytes;
        for (int64_t i = std::min<int64_t>(Kernel::row_step, rows); i > 0; --i, out += p.outputs * bytes) {
            for (int64_t byte = 0; byte < Kernel::panel_step * panel_outputs * bytes; byte += cache_line) {
                __builtin_prefetch(out + byte, 1);
            }
        }
    }

    // Weights that are fetched into the second cache while others are multiplied, some lines of each panel at a time.
    struct Ahead {
        const uint8_t* from = nullptr;
        int64_t panels = 0, stride = 0, lines = 0, lines_at_a_time = 0;

        void fetch() {
            const int64_t count = std::min(lines, lines_at_a_time);
            for (int64_t i = 0; i < panels; ++i) {
                const uint8_t* lines_of_panel = from + i * stride;
                for (int64_t line = 0; line < count; ++line) __builtin_prefetch(lines_of_panel + line * cache_line, 0, 2);
            }
            from += count * cache_line;
            lines -= count;
        }
    };

    Ahead ahead(int64_t panel, int64_t column, int64_t parts) const {
        const int64_t panels = std::min<int64_t>(Kernel::panel_step, panels_of(p.outputs) - panel);
        if (!Kernel::fetches_ahead || panels <= 0) return {};
        const int64_t bytes = panel_bytes(p.bits, p.columns);
        const int64_t columns = std::min<int64_t>(Kernel::depth, p.columns - column);
        const int64_t lines = panel_bytes(p.bits, columns) / cache_line;
        const uint8_t* from = p.panels + panel * bytes + panel_bytes(p.bits, column);
        return {from, panels, bytes, lines, (lines + parts - 1) / parts};
    }

    void multiply(int64_t row, int64_t rows, int64_t panel, int64_t panels, int64_t column) const {
        const int64_t columns = std::min<int64_t>(Kernel::depth, p.columns - column);
        const bool is_last = column + columns == p.columns;
        const int64_t parts = (rows + Kernel::row_step - 1) / Kernel::row_step;
        for (int64_t i = 0; i < panels; i += Kernel::panel_step) {
            const int64_t width = std::min<int64_t>(Kernel::panel_step, panels - i);
            // The next ones: of this group and these columns, of this group, of the next group.
            const bool more = i + width < panels;
            Ahead next = ahead(more ? panel + i + width : is_last ? panel + panels : panel,
                               more ? column : is_last ? 0 : column + columns, parts);
            int64_t stride;
            const int8_t* block = weights(panel + i, width, column, columns, stride);
            for (int64_t j = 0; j < rows; j += Kernel::row_step) {
                next.fetch();
                if (is_last) prefetch_outputs(row + j, rows - j, panel + i);
                Kernel::multiply(p, Kernel::input(p, inputs, row + j, column), block, stride, columns,
                                 sums + j * group_outputs + i * panel_outputs, group_outputs,
                                 std::min<int64_t>(Kernel::row_step, rows - j), width, column > 0);
            }
        }
    }

    void run(int64_t row, int64_t rows, int64_t panel, int64_t panels) const {
        for (int64_t column = 0; column < p.columns; column += Kernel::depth) {
            multiply(row, rows, panel, panels, column);
        }
        finish_panels(p, panel, panels, row, rows, sums, group_outputs);
    }
};

template <class Kernel>
void run_blocked(const IntegerProduct& p) {
    // Blocks of equal size, so that none decodes the weight for a few rows.
    const int64_t blocks = (p.rows + Kernel::block_rows - 1) / Kernel::block_rows;
    const int64_t block = round_up((p.rows + blocks - 1) / blocks, Kernel::row_step);
    uint8_t* inputs = scratch_of<uint8_t>(Scratch::inputs, Kernel::input_bytes(p));
#pragma omp parallel num_threads(p.threads)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        const typename Kernel::Session session;
        Kernel::arrange(p, inputs, thread, threads);
#pragma omp barrier
        const BlockedProduct<Kernel> product{
            p, inputs, scratch_of<int8_t>(Scratch::weights, Kernel::panel_step * Kernel::depth * panel_outputs),
            scratch_of<int32_t>(Scratch::sums, static_cast<size_t>(block * group_outputs))};
        const Range range = share(panels_of(p.outputs), Kernel::panel_step, thread, threads);
        for (int64_t row = 0; row < p.rows; row += block) {
            for (int64_t panel = range.first; panel < range.last; panel += group_panels) {
                product.run(row, std::min(block, p.rows - row), panel, std::min(group_panels, range.last - panel));
            }
        }
    }
}

}  // namespace
}  // namespace channelwise
