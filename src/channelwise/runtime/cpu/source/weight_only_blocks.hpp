// AVX-512: products block by block. While one block of a few panels and columns is multiplied, the next one is expanded
// into a second buffer. An engine multiplies a block with one tile of inputs: with AMX, or with vectors.
// Only for files compiled for AVX-512.
#pragma once

#include <omp.h>

#include <type_traits>

#include "weight_only_expand.hpp"
#include "weight_only_tiled.hpp"

namespace channelwise {
namespace {

// Whether what is multiplied are weights, with their scales.
template <class Scaling>
constexpr bool is_scaled = !std::is_same_v<Scaling, NoScaling>;

// Columns of a block: two stay in the first cache. Of scaled weights one is enough, for fewer additions to the totals.
template <class Scaling>
constexpr std::int64_t longest_span = is_scaled<Scaling> ? 256 : 128;

constexpr std::int64_t panels_with_rows_cached = 12;  // whose totals stay in the second cache, with the inputs
constexpr std::int64_t most_row_tiles = 32;           // of one pass
constexpr std::int64_t prefetch_distance = 4096;
constexpr std::int64_t sums_size = tile_rows * 16;

// With so many bfloat16 rows, scaling a narrow weight once takes less time than scaling each row's sums; as where groups
// run down columns, weights are rounded to bfloat16 then. That is far below their own step, up to 4 bits.
constexpr std::int64_t rows_for_rounded_weights = 256;

inline bool weights_are_rounded(const PairProduct& call) {
    return call.x_type == Number::bfloat16 && call.weight.bits <= 4 && call.rows >= rows_for_rounded_weights;
}

// Panels and columns that are multiplied at a time.
struct Block {
    std::int64_t panel, panels;  // as many as the engine takes at once
    Range columns;

    std::int64_t steps() const { return (columns.end - columns.begin + tile_columns - 1) / tile_columns; }
};

// A block's lattice values, or weights where they are scaled, [step][panel][16 chunks], expanded tile by tile.
template <int bits, class Scaling>
class ExpandedBlock {
public:
    void start(const PairPanels& weight, const Block& block, std::uint16_t* memory) {
        using U = Unit<bits>;
        values_ = memory;
        panels_ = block.panels;
        columns_ = block.columns.end - block.columns.begin;
        weight_ = &weight;
        block_ = block;
        panel_ = column_ = 0;
        panel_bytes_ = weight.padded / U::columns * U::bytes;
        data_ = weight.data + block.panel * panel_bytes_ + block.columns.begin / U::columns * U::bytes;
    }

    // Expands up to `count` more tiles; those of different panels are next to each other, as they are multiplied.
    void expand(const Lattice<bits>& lattice, std::int64_t count) {
        using U = Unit<bits>;
        for (; count > 0 && column_ < columns_; --count, values_ += tile_words) {
            const std::uint8_t* data = data_ + panel_ * panel_bytes_ + column_ / U::columns * U::bytes;
            const std::int64_t columns = smaller(tile_columns, columns_ - column_);
            const Scaling scaling(*weight_, block_.panel + panel_, block_.columns.begin + column_, columns);
            expand_tile<bits>(lattice, data, columns, prefetch_distance, scaling, values_);
            if (++panel_ == panels_) {
                panel_ = 0;
                column_ += tile_columns;
            }
        }
    }

private:
    const PairPanels* weight_ = nullptr;
    std::uint16_t* values_ = nullptr;
    const std::uint8_t* data_ = nullptr;
    std::int64_t panels_ = 0, columns_ = 0, panel_ = 0, column_ = 0, panel_bytes_ = 0;
    Block block_ = {};
};

// One thread's panels for all rows.
template <int bits, class Engine, class Scaling>
class Worker {
    static constexpr bool scaled = is_scaled<Scaling>;

public:
    Worker(const PairProduct& call, const TiledInputs& inputs)
        : call_(call), weight_(call.weight), inputs_(inputs), lattice_(weight_.table),
          engine_(inputs.rows_in_tiles()) {}

    // While a block is multiplied, the next one is expanded.
    void operator()(Range panels) {
        if (panels.begin == panels.end) return;
        panels_ = panels;
        start_group(panels.begin);
        Block block{panels.begin, smaller(Engine::panels_at_once, group_.end - group_.begin), {0, span_end(0)}};
        int current = 0;
        expanded_[current].start(weight_, block, values_memory(current));
        expanded_[current].expand(lattice_, Engine::panels_at_once * longest_span<Scaling> / tile_columns);
        for (bool more = true; more; current = 1 - current) {
            Block next = block;
            more = advance(next);
            ExpandedBlock<bits, Scaling>* following = more ? &expanded_[1 - current] : nullptr;
            if (following) following->start(weight_, next, values_memory(1 - current));
            multiply(block, values_memory(current), following);
            if (following) following->expand(lattice_, Engine::panels_at_once * longest_span<Scaling> / tile_columns);
            const bool last_of_group = !more || next.panel >= group_.end;
            if (last_of_group) finish_group();
            if (more && last_of_group) start_group(next.panel);
            block = next;
        }
    }

private:
    // Panels that are finished together: their totals, and the inputs for some columns, stay in cache.
    Range group_at(std::int64_t panel) const {
        std::int64_t end = panel + (inputs_.row_tiles == 1 ? Engine::panels_at_once : panels_with_rows_cached);
        if (weight_.down_columns && !scaled) end = smaller(end, (16 * panel / weight_.group + 1) * weight_.group / 16);
        return {panel, smaller(end, panels_.end)};
    }

    void start_group(std::int64_t panel) {
        group_ = group_at(panel);
        if (weight_.down_columns && !scaled) prepare(16 * panel / weight_.group);
        totals_ = totals_memory().zeros((group_.end - group_.begin) * inputs_.row_tiles * sums_size);
    }

    void finish_group() {
        for (std::int64_t panel = group_.begin; panel < group_.end; ++panel) finish(panel, total(panel, 0));
    }

    // Where a span of columns ends: within one group of scales.
    std::int64_t span_end(std::int64_t start) const {
        const std::int64_t group = scaled || weight_.down_columns ? weight_.padded : weight_.group;
        return smaller(smaller(start + longest_span<Scaling>, (start / group + 1) * group), weight_.padded);
    }

    // The block after this one: more panels of the group, then more columns, then more groups; false: there is none.
    bool advance(Block& block) const {
        std::int64_t panel = block.panel + block.panels, start = block.columns.begin;
        Range group = group_;
        if (panel >= group.end) {
            start = block.columns.end;
            panel = group.begin;
        }
        if (start >= weight_.padded) {
            if (group.end >= panels_.end) return false;
            start = 0;
            panel = group.end;
            group = group_at(panel);
        }
        block = {panel, smaller(Engine::panels_at_once, group.end - panel), {start, span_end(start)}};
        return true;
    }

    // Down columns: the inputs times the scales of one group of outputs.
    void prepare(std::int64_t group) {
        if (group == scaled_for_) return;
        scaled_for_ = group;
        inputs_.words = words_memory().at_least(inputs_.size());
        for (std::int64_t row = 0; row < inputs_.rows; ++row) {
            const void* x = row_of(call_.x, call_.x_type, row * call_.x_stride);
            corrections_[row] =
                scale_row(weight_, group, x, call_.x_type, inputs_.pieces, inputs_.row(row), inputs_.layout());
        }
    }

    float* total(std::int64_t panel, std::int64_t row_tile) const {
        return totals_ + ((panel - group_.begin) * inputs_.row_tiles + row_tile) * sums_size;
    }

    void multiply(const Block& block, const std::uint16_t* values, ExpandedBlock<bits, Scaling>* following) {
        if (block.panels == 1) return multiply_panels<1>(block, values, following);
        if (block.panels == 2) return multiply_panels<2>(block, values, following);
        if constexpr (Engine::panels_at_once >= 3) {
            if (block.panels == 3) return multiply_panels<3>(block, values, following);
        }
        if constexpr (Engine::panels_at_once == 4) multiply_panels<4>(block, values, following);
    }

    template <int panels>
    void multiply_panels(const Block& block, const std::uint16_t* values, ExpandedBlock<bits, Scaling>* following) {
        alignas(64) float sums[panels * sums_size];
        const std::int64_t steps = block.steps();
        // The next block is expanded evenly between the steps: some tiles with each, or one with some.
        const std::int64_t tiles = (Engine::panels_at_once + inputs_.row_tiles - 1) / inputs_.row_tiles;
        const std::int64_t interval = larger(1, inputs_.row_tiles / Engine::panels_at_once);
        std::int64_t wait = 1;
        for (std::int64_t row_tile = 0; row_tile < inputs_.row_tiles; ++row_tile) {
            const std::uint16_t* x = inputs_.tile(row_tile, block.columns.begin / tile_columns);
            engine_.template multiply<panels>(rows_in(row_tile), x, inputs_.tile_size(), values, steps, sums, [&] {
                if (!following || --wait > 0) return;
                following->expand(lattice_, tiles);
                wait = interval;
            });
            for (int p = 0; p < panels; ++p) {
                const std::int64_t panel = block.panel + p;
                add_sums(panel, row_tile, block.columns, sums + p * sums_size, total(panel, row_tile));
            }
        }
    }

    int rows_in(std::int64_t row_tile) const {
        const std::int64_t left = inputs_.rows - row_tile * inputs_.rows_per_tile;
        return static_cast<int>(smaller(left, inputs_.rows_per_tile)) * inputs_.pieces;
    }

    // total += (sums − zero point · Σ x) · scale, of 16 outputs and the rows of a tile.
    void add_sums(std::int64_t panel, std::int64_t row_tile, Range span, const float* sums, float* total) {
        const int rows = rows_in(row_tile);
        if (scaled || weight_.down_columns) {
            for (int r = 0; r < 16 * rows; r += 16) {
                _mm512_storeu_ps(total + r, _mm512_add_ps(_mm512_loadu_ps(total + r), _mm512_loadu_ps(sums + r)));
            }
            return;
        }
        const std::int64_t group = span.begin / weight_.group, index = (panel * weight_.groups + group) * 16;
        const __m512 scale = scales_at(weight_.scale, weight_.scale_type, index);
        // The inputs' sums are of the whole group: taken off with its first span.
        if (weight_.zero_point && span.begin == group * weight_.group) {
            const __m512 zero_point = zero_points_at(weight_.zero_point, index);
            const float* x_sums = inputs_.sums + (group * inputs_.row_tiles + row_tile) * 16;
            for (int r = 0; r < rows; ++r) {
                const __m512 x_sum = _mm512_set1_ps(x_sums[r]), raw = _mm512_loadu_ps(sums + 16 * r);
                const __m512 sum = _mm512_fnmadd_ps(zero_point, x_sum, raw);
                _mm512_storeu_ps(total + 16 * r, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(total + 16 * r)));
            }
            return;
        }
        for (int r = 0; r < 16 * rows; r += 16) {
            const __m512 sum = _mm512_loadu_ps(sums + r);
            _mm512_storeu_ps(total + r, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(total + r)));
        }
    }

    void finish(std::int64_t panel, float* total) {
        for (std::int64_t row = 0; row < inputs_.rows; ++row) {
            float* own = total + row / inputs_.rows_per_tile * sums_size + inputs_.place(row) * 16;
            if (weight_.down_columns && weight_.zero_point && !scaled) {
                const __m512 corrected = _mm512_sub_ps(_mm512_loadu_ps(own), _mm512_set1_ps(corrections_[row]));
                _mm512_storeu_ps(own, corrected);
            }
            store_outputs(call_, row, panel, own, inputs_.pieces, 16);
        }
    }

    // Kept for the thread's next call.
    static Workspace<std::uint16_t>& words_memory() {
        thread_local Workspace<std::uint16_t> memory;
        return memory;
    }
    static std::uint16_t* values_memory(int index) {
        thread_local Workspace<std::uint16_t> memory;
        constexpr std::int64_t size = Engine::panels_at_once * longest_span<Scaling> * 16;
        return memory.at_least(2 * size) + index * size;
    }
    static Workspace<float>& totals_memory() {
        thread_local Workspace<float> memory;
        return memory;
    }

    const PairProduct& call_;
    const PairPanels& weight_;
    TiledInputs inputs_;
    const Lattice<bits> lattice_;
    const Engine engine_;
    ExpandedBlock<bits, Scaling> expanded_[2];
    Range panels_ = {}, group_ = {};
    float* totals_ = nullptr;
    std::int64_t scaled_for_ = -1;
    float corrections_[tile_rows] = {};  // of inputs times scales, which come few at a time
};

// One pass over the weight. Groups down columns: scaled weights, or inputs (at most 16 rows) times the scales.
template <class Engine, class Scaling>
void pass_over(const PairProduct& call, int pieces) {
    const PairPanels& weight = call.weight;
    const bool common = is_scaled<Scaling> || !weight.down_columns;  // all panels take the same inputs
    const bool with_sums = !is_scaled<Scaling> && !weight.down_columns && weight.zero_point;
    thread_local Workspace<std::uint16_t> words;
    thread_local Workspace<float> sums;
    TiledInputs inputs(call, pieces);
    if (common) inputs.words = words.at_least(inputs.size());
    if (with_sums) inputs.sums = sums.at_least(weight.groups * inputs.row_tiles * 16);
    const std::int64_t panels = panels_of(weight);
    const int threads = static_cast<int>(smaller(call.threads, panels));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int index = omp_get_thread_num(), count = omp_get_num_threads();
        if (common) {
            fill_tiles(call, inputs, share(call.rows, index, count));
#pragma omp barrier
        }
        for_width(weight.bits, [&](auto bits) {
            Worker<decltype(bits)::value, Engine, Scaling>(call, inputs)(share(panels, index, count));
        });
    }
}

// All rows of the call, as many at a time as a pass takes.
template <class Engine, class Scaling>
void multiply_rows(const PairProduct& call, int pieces) {
    PairProduct part = call;
    for (std::int64_t first = 0; first < call.rows; first += part.rows) {
        part.rows = smaller(tile_rows / pieces * most_row_tiles, call.rows - first);
        part.x = row_of(call.x, call.x_type, first * call.x_stride);
        part.y = static_cast<char*>(call.y) + first * call.weight.outputs * number_size(call.y_type);
        pass_over<Engine, Scaling>(part, pieces);
    }
}

}  // namespace
}  // namespace channelwise
