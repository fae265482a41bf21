// Products and rows of pair panels in float32 with vectors of eight, which the compiler lowers to what the including
// file's level has. Defines `product` and `rows_of_weight` in an anonymous namespace.
#pragma once

// The vectors stay inside this header: no other file's calling convention meets them.
#pragma GCC diagnostic ignored "-Wpsabi"

#include <cstring>

#include <omp.h>

#include "weight_only.hpp"
#include "weight_only_numbers.hpp"
#include "weight_only_units.hpp"

namespace channelwise {
namespace {

typedef float Floats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(32)));
typedef std::int32_t Integers __attribute__((vector_size(32)));
typedef std::uint16_t Halves __attribute__((vector_size(16)));

// Eight codes to lattice values: computed where the table is a straight line, else looked up.
class Table {
public:
    Table(const float* table, int bits) : table_(table), first_(table[0]), step_(table[1] - table[0]) {
        for (int i = 0; i < 1 << bits; ++i) straight_ = straight_ && table[i] == first_ + step_ * static_cast<float>(i);
    }

    Floats operator()(Halves codes) const {
        const Integers index = __builtin_convertvector(codes, Integers);
        if (straight_) return first_ + step_ * __builtin_convertvector(index, Floats);
        Floats values;
        for (int i = 0; i < 8; ++i) values[i] = table_[index[i]];
        return values;
    }

private:
    const float* table_;
    float first_, step_;
    bool straight_ = true;
};

// A unit's lattice values, float32 [chunk][output][2].
template <int bits>
inline void decode_unit(const Table& table, const std::uint8_t* unit, float* values) {
    using U = Unit<bits>;
    for (int eighth = 0; eighth < 4; ++eighth) {
        Halves word[U::registers];
        for (int r = 0; r < U::registers; ++r) std::memcpy(word + r, unit + 64 * r + 16 * eighth, 16);
        unrolled<U::chunks>([&](auto chunk) {
            constexpr int c = decltype(chunk)::value;
            const Floats part = table(code_of<bits, c>(word));
            std::memcpy(values + 32 * c + 8 * eighth, &part, 32);
        });
    }
}

// An even and an odd input, four times.
inline Floats pair_at(const float* x) {
#if defined(__AVX2__)
    double both;
    std::memcpy(&both, x, 8);
    const Doubles broadcast = {both, both, both, both};
    Floats pair;
    std::memcpy(&pair, &broadcast, 32);
    return pair;
#else
    return Floats{x[0], x[1], x[0], x[1], x[0], x[1], x[0], x[1]};
#endif
}

// sums[row][output][2] += values · x over some chunks, even and odd inputs apart.
inline void multiply_chunks(const float* values, std::int64_t chunks, const float* x, std::int64_t stride,
                            std::int64_t rows, float* sums) {
    for (std::int64_t row = 0; row < rows; ++row, x += stride, sums += 32) {
        Floats sum[4], value;
        std::memcpy(sum, sums, 128);
        for (std::int64_t c = 0; c < chunks; ++c) {
            const Floats pair = pair_at(x + 2 * c);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                std::memcpy(&value, values + 32 * c + 8 * i, 32);
                sum[i] += value * pair;
            }
        }
        std::memcpy(sums, sum, 128);
    }
}

// One thread's range of panels for all rows of the call; x: the inputs as float32 [rows][padded].
template <int bits>
class PlainWorker {
public:
    PlainWorker(const PairProduct& call, const float* x, const float* x_sums)
        : call_(call), weight_(call.weight), table_(weight_.table, bits), x_(x), x_sums_(x_sums),
          sums_(sums_memory_.at_least(call.rows * 32)), total_(total_memory_.at_least(call.rows * 16)) {}

    void operator()(Range panels) {
        for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
            total_memory_.zeros(call_.rows * 16);
            if (weight_.down_columns) {
                prepare(16 * panel / weight_.group);
                multiply(panel, 0, weight_.padded, scaled_);
                add(nullptr, nullptr, corrections_, 1);
            } else {
                along_rows(panel);
            }
            finish(panel);
        }
    }

private:
    void along_rows(std::int64_t panel) {
        for (std::int64_t group = 0; group < weight_.groups; ++group) {
            const std::int64_t begin = group * weight_.group, index = (panel * weight_.groups + group) * 16;
            multiply(panel, begin, smaller(begin + weight_.group, weight_.padded), x_);
            float scale[16], zero_point[16] = {};
            for (int o = 0; o < 16; ++o) {
                scale[o] = number(weight_.scale, weight_.scale_type, index + o);
                if (weight_.zero_point) zero_point[o] = weight_.zero_point[index + o];
            }
            add(scale, zero_point, x_sums_ + group, weight_.groups);
        }
    }

    void prepare(std::int64_t group) {
        if (group == group_) return;
        group_ = group;
        scaled_ = scaled_memory_.zeros(call_.rows * weight_.padded);
        corrections_ = corrections_memory_.zeros(call_.rows);
        for (std::int64_t k = 0; k < weight_.columns; ++k) {
            const std::int64_t index = group * weight_.padded + k;
            const float scale = number(weight_.scale, weight_.scale_type, index);
            const float zero_point = weight_.zero_point ? weight_.zero_point[index] : 0.0f;
            for (std::int64_t row = 0; row < call_.rows; ++row) {
                const float value = x_[row * weight_.padded + k] * scale;
                scaled_[row * weight_.padded + k] = value;
                corrections_[row] += value * zero_point;
            }
        }
    }

    void multiply(std::int64_t panel, std::int64_t begin, std::int64_t end, const float* x) {
        using U = Unit<bits>;
        sums_memory_.zeros(call_.rows * 32);
        float values[16 * 32];  // of 32 columns
        const std::uint8_t* unit = weight_.data + (panel * weight_.padded + begin) / U::columns * U::bytes;
        for (std::int64_t k = begin; k < end; k += 32) {
            const std::int64_t columns = smaller(32, end - k);
            for (std::int64_t inside = 0; inside < columns; inside += U::columns, unit += U::bytes) {
                decode_unit<bits>(table_, unit, values + 16 * inside);
            }
            multiply_chunks(values, columns / 2, x + k, weight_.padded, call_.rows, sums_);
        }
    }

    // total += (sums − zero point · x sum) · scale; without a scale, total += sums − x sum.
    void add(const float* scale, const float* zero_point, const float* x_sum, std::int64_t stride) {
        for (std::int64_t row = 0; row < call_.rows; ++row) {
            const float* sums = sums_ + row * 32;
            for (int o = 0; o < 16; ++o) {
                const float sum = sums[2 * o] + sums[2 * o + 1], own = x_sum[row * stride];
                total_[row * 16 + o] +=
                    scale ? (sum - zero_point[o] * own) * scale[o] : sum - own;
            }
        }
    }

    void finish(std::int64_t panel) {
        const std::int64_t count = smaller(16, weight_.outputs - 16 * panel);
        for (std::int64_t row = 0; row < call_.rows; ++row) {
            for (std::int64_t o = 0; o < count; ++o) {
                const float bias = call_.bias ? call_.bias[16 * panel + o] : 0.0f;
                const float value = total_[row * 16 + o] + bias;
                store(call_.y, call_.y_type, row * weight_.outputs + 16 * panel + o, value);
            }
        }
    }

    const PairProduct& call_;
    const PairPanels& weight_;
    const Table table_;
    const float *x_, *x_sums_;
    Workspace<float> sums_memory_, total_memory_, scaled_memory_, corrections_memory_;
    float *sums_, *total_, *scaled_ = nullptr, *corrections_ = nullptr;
    std::int64_t group_ = -1;
};

inline bool product(const PairProduct& call) {
    const PairPanels& weight = call.weight;
    thread_local Workspace<float> x_memory, x_sums_memory;
    float* x = x_memory.zeros(call.rows * weight.padded);
    float* x_sums = x_sums_memory.zeros(weight.down_columns ? 0 : call.rows * weight.groups);
    for (std::int64_t row = 0; row < call.rows; ++row) {
        for (std::int64_t k = 0; k < weight.columns; ++k) {
            const float value = number(call.x, call.x_type, row * call.x_stride + k);
            x[row * weight.padded + k] = value;
            if (!weight.down_columns) x_sums[row * weight.groups + k / weight.group] += value;
        }
    }
    return for_width(weight.bits, [&](auto bits) {
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
        PlainWorker<decltype(bits)::value>(call, x, x_sums)(
            share(panels_of(weight), omp_get_thread_num(), omp_get_num_threads()));
    });
}

// The part of the panel's outputs [first, last) of a unit that starts at column k, row-major; a unit is in one group.
inline void store_unit(const PairPanels& weight, std::int64_t k, int columns, const float* values, std::int64_t first,
                       std::int64_t last, float* rows) {
    const int present = static_cast<int>(smaller(columns, weight.columns - k));
    for (std::int64_t output = first; output < last; ++output, rows += weight.columns) {
        const std::int64_t lane = output % 16;
        const std::int64_t index = weight.down_columns ? output / weight.group * weight.padded + k
                                                       : (output / 16 * weight.groups + k / weight.group) * 16 + lane;
        float scale = number(weight.scale, weight.scale_type, index);
        float zero_point = weight.zero_point ? weight.zero_point[index] : 0.0f;
        for (int i = 0; i < present; ++i) {
            if (weight.down_columns) {
                scale = number(weight.scale, weight.scale_type, index + i);
                zero_point = weight.zero_point ? weight.zero_point[index + i] : 0.0f;
            }
            rows[k + i] = (values[32 * (i / 2) + 2 * lane + i % 2] - zero_point) * scale;
        }
    }
}

inline void rows_of_weight(const PairPanels& weight, std::int64_t first, std::int64_t count, float* rows, int threads) {
    const std::int64_t begin = first / 16, panels = count > 0 ? (first + count - 1) / 16 - begin + 1 : 0;
    for_width(weight.bits, [&](auto width) {
        constexpr int bits = decltype(width)::value;
        using U = Unit<bits>;
        const Table table(weight.table, bits);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (std::int64_t panel = begin; panel < begin + panels; ++panel) {
            const std::int64_t from = larger(first, 16 * panel), to = smaller(first + count, 16 * panel + 16);
            float values[U::chunks * 32];
            for (std::int64_t k = 0; k < weight.columns; k += U::columns) {
                decode_unit<bits>(table, weight.data + (panel * weight.padded + k) / U::columns * U::bytes, values);
                store_unit(weight, k, U::columns, values, from, to, rows + (from - first) * weight.columns);
            }
        }
    });
}

}  // namespace
}  // namespace channelwise
