// AVX-512: few rows of inputs, in digits, times pair panels whose values are whole numbers: exact sums of bytes over a
// block of columns, scaled and added up in float32. The weight is read once for up to `rows_at_once` rows.
#include <omp.h>

#include "weight_only_decode.hpp"
#include "weight_only_digits.hpp"

namespace channelwise {
namespace {

constexpr int rows_at_once = 4;
constexpr std::int64_t prefetch_distance = 2048;

// More panels at a time give one row's sums enough independent ones.
constexpr int panels_for(int rows) { return rows == 1 ? 4 : 2; }

struct Call {
    const PairPanels& weight;
    const Blocks blocks;
    const WholeTable& table;
};

// The whole numbers of a unit's bytes, register by register.
template <int bits>
class Bytes {
public:
    explicit Bytes(const std::uint8_t* unit) {
        for (int r = 0; r < U::registers; ++r) {
            word_[r] = _mm512_loadu_si512(unit + 64 * r);
        }
        if constexpr (U::left > 0) {
            const __m512i low = select<0x03>(_mm512_srli_epi16(word_[0], 6), _mm512_srli_epi16(word_[1], 4));
            word_[3] = select<0x0f>(low, _mm512_srli_epi16(word_[2], 2));
        }
    }

    // Lookups take six bits of a byte: tables are repeated over those that do not belong to the code.
    template <int index>
    __m512i number(__m512i table) const {
        const __m512i word = word_[index / U::per_byte];
        if constexpr (bits == 8) return word;
        constexpr int shift = bits * (index % U::per_byte);
        return _mm512_permutexvar_epi8(shift ? _mm512_srli_epi16(word, shift) : word, table);
    }

private:
    using U = Unit<bits>;

    template <int mask>
    static __m512i select(__m512i a, __m512i b) {
        return _mm512_ternarylogic_epi32(_mm512_set1_epi8(mask), a, b, 0xca);
    }

    __m512i word_[4];
};

// sum[panel][line] += digits · numbers over some units.
template <int bits, int lines, int panels>
inline void accumulate(__m512i table, const std::uint8_t* data, std::int64_t panel_bytes, std::int64_t ahead,
                       std::int64_t units, const std::int8_t* x, std::int64_t stride, __m512i (&sum)[panels][lines]) {
    using U = Unit<bits>;
    for (std::int64_t unit = 0; unit < units; ++unit, data += U::bytes, x += U::columns) {
        unrolled<panels>([&](auto panel) {
            constexpr int p = decltype(panel)::value;
            const std::uint8_t* source = data + p * panel_bytes;
            // Digits kept for the next panel would not fit into registers: they are read again.
            const std::int8_t* inputs = x;
            __asm__ volatile("" : "+r"(inputs));
            const Bytes<bits> bytes(source);
            for (int r = 0; r < U::registers; ++r) {
                _mm_prefetch(reinterpret_cast<const char*>(source + ahead + 64 * r), _MM_HINT_T0);
            }
            unrolled<U::columns / 4>([&](auto index) {
                constexpr int q = decltype(index)::value;
                const __m512i numbers = bytes.template number<q>(table);
#pragma GCC unroll 12
                for (int line = 0; line < lines; ++line) {
                    std::int32_t four;
                    __builtin_memcpy(&four, inputs + line * stride + 4 * q, 4);
                    sum[p][line] = _mm512_dpbusd_epi32(sum[p][line], numbers, _mm512_set1_epi32(four));
                }
            });
        });
    }
}

// A row's sums over a block from those of its digits.
template <int digits>
inline __m512 joined(const __m512i* sum) {
    if constexpr (digits == 2) return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sum[1], 8), sum[0]));
    const __m512 base = _mm512_set1_ps(256.0f);
    const __m512 upper = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[2]), base, _mm512_cvtepi32_ps(sum[1]));
    return _mm512_fmadd_ps(upper, base, _mm512_cvtepi32_ps(sum[0]));
}

// The outputs of some panels, [panel][row][16], before the bias.
template <int bits, int digits, int rows, int panels>
void panel_sums(const Call& call, std::int64_t panel, const Digits& inputs, float* sums) {
    using U = Unit<bits>;
    constexpr int lines = rows * digits;
    const PairPanels& weight = call.weight;
    const __m512i table = _mm512_load_si512(call.table.bytes);
    const std::int64_t panel_bytes = weight.padded / U::columns * U::bytes;
    const bool scaled = !weight.down_columns, zero_points = scaled && weight.zero_point;
    const std::uint8_t* data = weight.data + panel * panel_bytes;
    __m512 total[panels][rows];
    for (auto& row : total) {
        for (auto& value : row) value = _mm512_setzero_ps();
    }
    for (std::int64_t block = 0; block < inputs.blocks; ++block) {
        const std::int64_t begin = call.blocks.begin(block), end = call.blocks.end(block, weight.padded);
        if (begin >= end) continue;
        const std::int64_t group = block / call.blocks.per_group, offset = begin / U::columns * U::bytes;
        __m512i sum[panels][lines];
        __m512 scale[panels];
        for (int p = 0; p < panels; ++p) {
            const std::int64_t index = ((panel + p) * weight.groups + group) * 16;
            scale[p] = scaled ? scales_at(weight.scale, weight.scale_type, index) : _mm512_set1_ps(1.0f);
            __m512i zero_point = _mm512_setzero_si512();
            if (zero_points) {
                const auto* bytes = reinterpret_cast<const __m128i*>(weight.zero_point + index);
                zero_point = _mm512_cvtepi8_epi32(_mm_loadu_si128(bytes));
                zero_point = half_words(_mm512_add_epi32(zero_point, _mm512_set1_epi32(call.table.lowest)));
            }
            for (int line = 0; line < lines; ++line) {
                const __m512i start = _mm512_set1_epi32(inputs.starts[line * inputs.blocks + block]);
                sum[p][line] = zero_points ? _mm512_dpwssd_epi32(_mm512_setzero_si512(), zero_point, start) : start;
            }
        }
        // Behind the end of these panels lie those that come next.
        const bool last = offset + prefetch_distance >= panel_bytes;
        const std::int64_t ahead = prefetch_distance + (last ? (panels - 1) * panel_bytes : 0);
        accumulate<bits, lines, panels>(table, data + offset, panel_bytes, ahead, (end - begin) / U::columns,
                                        inputs.bytes + begin, inputs.stride, sum);
        for (int p = 0; p < panels; ++p) {
            for (int r = 0; r < rows; ++r) {
                const __m512 unit = _mm512_set1_ps(inputs.units[r * inputs.blocks + block]);
                const __m512 value = joined<digits>(sum[p] + r * digits);
                total[p][r] = _mm512_fmadd_ps(value, _mm512_mul_ps(scale[p], unit), total[p][r]);
            }
        }
    }
    for (int p = 0; p < panels; ++p) {
        for (int r = 0; r < rows; ++r) _mm512_storeu_ps(sums + (p * rows + r) * 16, total[p][r]);
    }
}

using PanelSums = void (*)(const Call&, std::int64_t, const Digits&, float*);

// What one thread does: a contiguous range of panels for all rows.
template <int bits, int digits>
class Worker {
public:
    Worker(const PairProduct& product, const Call& call, const Digits& inputs)
        : product_(product), call_(call), inputs_(inputs) {}

    void operator()(Range panels) {
        const PairPanels& weight = product_.weight;
        const int step = panels_for(static_cast<int>(smaller(rows_at_once, product_.rows)));
        for (std::int64_t panel = panels.begin; panel < panels.end;) {
            if (weight.down_columns) prepare(16 * panel / weight.group);
            const std::int64_t left = smaller(panels.end, group_end(panel)) - panel;
            const int count = left >= step ? step : 1;
            compute(panel, count);
            panel += count;
        }
    }

private:
    // Where the panels end that have their inputs in common with this one.
    std::int64_t group_end(std::int64_t panel) const {
        const PairPanels& weight = product_.weight;
        if (!weight.down_columns) return panels_of(weight);
        return (16 * panel / weight.group + 1) * weight.group / 16;
    }

    // Down columns: the inputs times the scales of one group of outputs.
    void prepare(std::int64_t group) {
        if (group == group_) return;
        group_ = group;
        thread_local DigitsMemory memory;
        const PairPanels& weight = product_.weight;
        inputs_ = memory.at_least(product_.rows, digits, weight.padded, call_.blocks.count());
        for (std::int64_t row = 0; row < product_.rows; ++row) {
            const void* x = row_of(product_.x, product_.x_type, row * product_.x_stride);
            const ScaledRow scaled{weight, group, x, product_.x_type, call_.table.lowest};
            digits_of_row<bits>(call_.blocks, weight.padded, call_.table.unit, inputs_, row, scaled);
        }
    }

    void compute(std::int64_t panel, int count) {
        alignas(64) float sums[4 * rows_at_once * 16];
        for (std::int64_t row = 0; row < product_.rows;) {
            const std::int64_t left = product_.rows - row;
            const int rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            kernel(rows, count)(call_, panel, inputs_.from(row), sums);
            for (int p = 0; p < count; ++p) {
                for (int r = 0; r < rows; ++r) {
                    store_outputs(product_, row + r, panel + p, sums + (p * rows + r) * 16, 1, 0);
                }
            }
            row += rows;
        }
    }

    static PanelSums kernel(int rows, int panels) {
        if (rows == 4) return panels == 2 ? panel_sums<bits, digits, 4, 2> : panel_sums<bits, digits, 4, 1>;
        if (rows == 2) return panels == 2 ? panel_sums<bits, digits, 2, 2> : panel_sums<bits, digits, 2, 1>;
        if (panels == 4) return panel_sums<bits, digits, 1, 4>;
        return panels == 2 ? panel_sums<bits, digits, 1, 2> : panel_sums<bits, digits, 1, 1>;
    }

    const PairProduct& product_;
    const Call& call_;
    Digits inputs_;
    std::int64_t group_ = -1;
};

template <int bits, int digits>
void multiply(const PairProduct& product, const Call& call) {
    const PairPanels& weight = product.weight;
    thread_local DigitsMemory memory;
    Digits inputs{};
    if (!weight.down_columns) {
        inputs = memory.at_least(product.rows, digits, weight.padded, call.blocks.count());
        const std::int32_t counted = weight.zero_point ? 1 : call.table.lowest;
        for (std::int64_t row = 0; row < product.rows; ++row) {
            const void* x = row_of(product.x, product.x_type, row * product.x_stride);
            const PlainRow plain{x, product.x_type, weight.columns, counted};
            digits_of_row<bits>(call.blocks, weight.padded, call.table.unit, inputs, row, plain);
        }
    }
    const std::int64_t quads = (panels_of(weight) + 3) / 4;
    const int threads = static_cast<int>(larger(1, smaller(product.threads, quads)));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const Range part = share(quads, omp_get_thread_num(), omp_get_num_threads());
        Worker<bits, digits>(product, call, inputs)({4 * part.begin, smaller(4 * part.end, panels_of(weight))});
    }
}

}  // namespace

bool digit_rows_avx512(const PairProduct& product) {
    const WholeTable table(product.weight);
    if (!table.fits) return false;
    const Call call{product.weight, Blocks(product.weight), table};
    return for_width(product.weight.bits, [&](auto bits) {
        if (digits_of(product.x_type) == 2) {
            multiply<decltype(bits)::value, 2>(product, call);
        } else {
            multiply<decltype(bits)::value, 3>(product, call);
        }
    });
}

}  // namespace channelwise
