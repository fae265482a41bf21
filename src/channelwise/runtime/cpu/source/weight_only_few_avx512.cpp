// AVX-512: few rows of inputs times pair panels. Codes are looked up on their way from memory into products of
// bfloat16 pairs; the weight is read once for up to `rows_at_once` rows.
#include <omp.h>

#include "weight_only_decode.hpp"
#include "weight_only_rows.hpp"

namespace channelwise {
namespace {

constexpr int rows_at_once = 8;
constexpr int panels_at_once = 2;
constexpr int prefetch_distance = 2048;

// Prepared inputs: rows of bfloat16 words, and per row the sums that zero points are multiplied with.
struct Inputs {
    const std::uint16_t* words;
    std::int64_t stride;
    const float* sums;  // [row][groups] along rows; null without zero points
};

// Σ_k x_rk · t[c_ok] over some units, added up in several phases so that no product waits for the one before it.
template <int bits, int rows, int panels>
inline void accumulate(const Lookup<bits>& lookup, const std::uint8_t* data, std::int64_t panel_bytes,
                       std::int64_t units, const std::uint16_t* x, std::int64_t stride, __m512 (&sum)[panels][rows]) {
    using U = Unit<bits>;
    constexpr int phases = rows * panels >= 8 ? 1 : rows * panels >= 4 ? 2 : 4;
    __m512 part[phases][panels][rows];
    for (auto& phase : part) {
        for (auto& panel : phase) {
            for (auto& value : panel) value = _mm512_setzero_ps();
        }
    }
    for (std::int64_t unit = 0; unit < units; ++unit, data += U::bytes, x += U::columns) {
        unrolled<panels>([&](auto index) {
            constexpr int p = decltype(index)::value;
            const std::uint8_t* source = data + p * panel_bytes;
            for (int r = 0; r < U::registers; ++r) {
                _mm_prefetch(reinterpret_cast<const char*>(source + prefetch_distance + 64 * r), _MM_HINT_T0);
            }
            const Words<bits> words(source);
            unrolled<U::chunks>([&](auto chunk) {
                constexpr int c = decltype(chunk)::value;
                unrolled<parts_of<bits>>([&](auto half) {
                    constexpr int part_index = decltype(half)::value;
                    constexpr int phase = (c * parts_of<bits> + part_index) % phases;
                    const __m512i codes = words.template codes<c, part_index>();
                    const __m512i values = lookup.template operator()<part_index>(codes);
#pragma GCC unroll 8
                    for (int r = 0; r < rows; ++r) {
                        std::int32_t pair;
                        __builtin_memcpy(&pair, x + r * stride + 2 * c, 4);
                        __m512& target = part[phase][p][r];
                        target = _mm512_dpbf16_ps(target, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)values);
                    }
                });
            });
        });
    }
    for (int p = 0; p < panels; ++p) {
        for (int r = 0; r < rows; ++r) {
            sum[p][r] = part[0][p][r];
            for (int phase = 1; phase < phases; ++phase) sum[p][r] = _mm512_add_ps(sum[p][r], part[phase][p][r]);
        }
    }
}

// The outputs of a panel and of the one `next` further, [panel][row][16], before the bias; zero points down columns are
// still missing.
template <int bits, int rows>
void panel_sums(const PairPanels& weight, std::int64_t panel, int next, const Inputs& inputs, float* sums) {
    using U = Unit<bits>;
    const Lookup<bits> lookup(weight.table);
    const std::int64_t units = weight.padded / U::columns, panel_bytes = units * U::bytes;
    const bool scaled = !weight.down_columns;
    const std::int64_t groups = scaled ? weight.groups : 1, size = scaled ? weight.group / U::columns : units;
    const std::uint8_t* data = weight.data + panel * panel_bytes;
    constexpr int panels = panels_at_once;
    __m512 total[panels][rows];
    for (auto& row : total) {
        for (auto& value : row) value = _mm512_setzero_ps();
    }
    for (std::int64_t group = 0; group < groups; ++group) {
        const std::int64_t first = group * size, count = smaller(size, units - first);
        __m512 sum[panels][rows];
        accumulate<bits, rows, panels>(lookup, data + first * U::bytes, next * panel_bytes, count,
                                       inputs.words + first * U::columns, inputs.stride, sum);
        for (int p = 0; p < panels; ++p) {
            const std::int64_t index = ((panel + p * next) * weight.groups + group) * 16;
            const __m512 scale = scaled ? scales_at(weight.scale, weight.scale_type, index) : _mm512_set1_ps(1.0f);
            if (scaled && weight.zero_point) {
                const __m512 zero_point = zero_points_at(weight.zero_point, index);
                for (int r = 0; r < rows; ++r) {
                    const __m512 x_sum = _mm512_set1_ps(inputs.sums[r * weight.groups + group]);
                    sum[p][r] = _mm512_fnmadd_ps(zero_point, x_sum, sum[p][r]);
                }
            }
            for (int r = 0; r < rows; ++r) total[p][r] = _mm512_fmadd_ps(sum[p][r], scale, total[p][r]);
        }
    }
    for (int p = 0; p < panels; ++p) {
        for (int r = 0; r < rows; ++r) _mm512_storeu_ps(sums + (p * rows + r) * 16, total[p][r]);
    }
}

using PanelSums = void (*)(const PairPanels&, std::int64_t, int, const Inputs&, float*);

// Kernels by the number of rows less one; five and seven rows take two.
template <int bits>
constexpr PanelSums kernels[rows_at_once] = {panel_sums<bits, 1>, panel_sums<bits, 2>, panel_sums<bits, 3>,
                                             panel_sums<bits, 4>, nullptr,             panel_sums<bits, 6>,
                                             nullptr,             panel_sums<bits, 8>};

constexpr std::int64_t rows_of_kernel(std::int64_t rows) {
    return rows >= rows_at_once ? rows_at_once : rows == 5 ? 3 : rows == 7 ? 4 : rows;
}

struct Pass {
    std::int64_t first, rows;  // of the call's rows
    int pieces;
};

// What one thread does: a contiguous range of panels for the rows of a pass.
class Worker {
public:
    Worker(const PairProduct& call, const Pass& pass, const Inputs& inputs)
        : call_(call), weight_(call.weight), pass_(pass), inputs_(inputs), rows_(pass.rows * pass.pieces) {}

    void operator()(Range pairs) {
        const std::int64_t end = smaller(pairs.end * panels_at_once, panels_of(weight_));
        for (std::int64_t panel = pairs.begin * panels_at_once; panel < end;) {
            const std::int64_t left = smaller(end, group_end(panel)) - panel;
            if (weight_.down_columns) prepare(16 * panel / weight_.group);
            const int count = left >= panels_at_once ? panels_at_once : 1;
            for_width(weight_.bits, [&](auto bits) {
                compute(panel, count, kernels<decltype(bits)::value>);
            });
            panel += count;
        }
    }

private:
    // Where the panels end that have their inputs in common with this one.
    std::int64_t group_end(std::int64_t panel) const {
        if (!weight_.down_columns) return panels_of(weight_);
        return (16 * panel / weight_.group + 1) * weight_.group / 16;
    }

    // Down columns: the inputs times the scales of one group of outputs.
    void prepare(std::int64_t group) {
        if (group == group_) return;
        group_ = group;
        thread_local Workspace<std::uint16_t> workspace;
        std::uint16_t* words = workspace.at_least(rows_ * inputs_.stride);
        for (std::int64_t row = 0; row < pass_.rows; ++row) {
            const void* x = row_of(call_.x, call_.x_type, (pass_.first + row) * call_.x_stride);
            std::uint16_t* target = words + row * pass_.pieces * inputs_.stride;
            const RowLayout layout{inputs_.stride, 32, inputs_.stride};
            corrections_[row] = scale_row(weight_, group, x, call_.x_type, pass_.pieces, target, layout);
        }
        inputs_.words = words;
    }

    void compute(std::int64_t panel, int count, const PanelSums* kernel) {
        alignas(64) float sums[panels_at_once * 16 * 16];
        alignas(64) float block[panels_at_once * rows_at_once * 16];
        std::int64_t rows = 0;
        for (std::int64_t first = 0; first < rows_; first += rows) {
            rows = rows_of_kernel(rows_ - first);
            const float* x_sums = inputs_.sums ? inputs_.sums + first * weight_.groups : nullptr;
            const Inputs part{inputs_.words + first * inputs_.stride, inputs_.stride, x_sums};
            kernel[rows - 1](weight_, panel, count - 1, part, block);  // of a last panel alone, twice the same
            for (int p = 0; p < count; ++p) {
                for (std::int64_t i = 0; i < rows * 16; ++i) sums[(p * 16 + first) * 16 + i] = block[p * rows * 16 + i];
            }
        }
        for (int p = 0; p < count; ++p) {
            for (std::int64_t row = 0; row < pass_.rows; ++row) {
                float* own = sums + (p * 16 + row * pass_.pieces) * 16;
                if (weight_.down_columns && weight_.zero_point) {
                    for (int lane = 0; lane < 16; ++lane) own[lane] -= corrections_[row];
                }
                store_outputs(call_, pass_.first + row, panel + p, own, pass_.pieces, 16);
            }
        }
    }

    const PairProduct& call_;
    const PairPanels& weight_;
    const Pass pass_;
    Inputs inputs_;
    const std::int64_t rows_;
    std::int64_t group_ = -1;
    float corrections_[16] = {};
};

// Along rows: the inputs' pieces and group sums, the same for all panels.
Inputs prepared(const PairProduct& call, const Pass& pass, std::int64_t stride) {
    const PairPanels& weight = call.weight;
    Inputs inputs{nullptr, stride, nullptr};
    if (weight.down_columns) return inputs;
    thread_local Workspace<std::uint16_t> words;
    thread_local Workspace<float> sums;
    const std::int64_t rows = pass.rows * pass.pieces;
    std::uint16_t* target = words.at_least(rows * stride);
    float* x_sums = weight.zero_point ? sums.zeros(rows * weight.groups) : nullptr;
        for (std::int64_t row = 0; row < pass.rows; ++row) {
        const void* x = row_of(call.x, call.x_type, (pass.first + row) * call.x_stride);
        const RowLayout layout{stride, 32, stride};
        split_row(x, call.x_type, weight.columns, pass.pieces, target + row * pass.pieces * stride, layout);
        // The sum is of the numbers themselves, so it belongs to the first piece alone.
        if (x_sums) {
            group_sums(x, call.x_type, weight.columns, weight.group, x_sums + row * pass.pieces * weight.groups, 1);
        }
    }
    inputs.words = target;
    inputs.sums = x_sums;
    return inputs;
}

}  // namespace

bool few_rows_avx512(const PairProduct& call) {
    const PairPanels& weight = call.weight;
    const bool scaled_inputs = weight.down_columns != 0;
    const int pieces = scaled_inputs ? (pieces_of(call.x_type) == 3 ? 3 : 2) : pieces_of(call.x_type);
    const std::int64_t at_once = 16 / pieces, stride = up_to_multiple(weight.padded, 32);
    const std::int64_t pairs = (panels_of(weight) + panels_at_once - 1) / panels_at_once;
    const int threads = static_cast<int>(larger(1, smaller(call.threads, pairs)));
    for (std::int64_t first = 0; first < call.rows; first += at_once) {
        const Pass pass{first, smaller(at_once, call.rows - first), pieces};
        const Inputs inputs = prepared(call, pass, stride);
#pragma omp parallel num_threads(threads) if (threads > 1)
        Worker(call, pass, inputs)(share(pairs, omp_get_thread_num(), omp_get_num_threads()));
    }
    return true;
}

}  // namespace channelwise
