// Products of floating-point inputs with a weight in pair panels: what the kernels are given, and the kernels of each
// level. A weight's value is (table[code] − zero point) · scale; scales lie along rows (a group is consecutive inputs
// of one output) or down columns (consecutive outputs of one input).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "levels.hpp"

namespace channelwise {

enum class Number : std::int32_t { float32 = 0, bfloat16 = 1, float16 = 2 };

// Laid out as `_Panels` in weight_only.py. Scales and zero points lie in panel order: along rows [panel][group][16],
// down columns [group][padded].
struct PairPanels {
    const std::uint8_t* data;        // [panel][unit][register][64 bytes]
    const void* scale;               // float16 or float32
    const std::int8_t* zero_point;   // null for none
    const float* table;              // 2^bits lattice values
    std::int64_t outputs, columns;   // the weight's shape
    std::int64_t padded;             // columns in whole units
    std::int64_t group, groups;      // columns or outputs that share a scale, and how many such groups there are
    std::int32_t bits;               // of a code as it lies in the panels: 2, 3, 4, 6 or 8
    Number scale_type;
    std::int32_t down_columns;
};

struct PairProduct {
    PairPanels weight;
    const void* x;  // [rows][columns], rows x_stride numbers apart
    std::int64_t rows, x_stride;
    Number x_type;
    const float* bias;  // [outputs] or null
    void* y;            // [rows][outputs]
    Number y_type;
    int threads;
};

// In an anonymous namespace, as all that files of different levels share: each has its own copy, compiled its own way.
namespace {

inline std::int64_t panels_of(const PairPanels& weight) { return (weight.outputs + 15) / 16; }

struct Range {
    std::int64_t begin, end;
};

// The part of `count` things that thread `index` of `threads` works on.
inline Range share(std::int64_t count, int index, int threads) {
    return {count * index / threads, count * (index + 1) / threads};
}

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

// Memory that is kept from call to call, as large as the largest call wanted it; its contents are not.
template <class T>
class Workspace {
public:
    T* at_least(std::int64_t count) {
        if (count > count_) {
            data_.reset();
            data_.reset(static_cast<T*>(::operator new(sizeof(T) * static_cast<std::size_t>(count), alignment)));
            count_ = count;
        }
        return data_.get();
    }

    T* zeros(std::int64_t count) {
        T* data = at_least(count);
        for (std::int64_t i = 0; i < count; ++i) data[i] = T();
        return data;
    }

private:
    static constexpr std::align_val_t alignment{64};
    struct Delete {
        void operator()(T* data) const { ::operator delete(data, alignment); }
    };
    std::unique_ptr<T[], Delete> data_;
    std::int64_t count_ = 0;
};

}  // namespace

// Each computes the whole product; false: it has no kernel for these inputs and has done nothing.
bool pair_product_portable(const PairProduct& call);
bool pair_product_avx2(const PairProduct& call);
bool digit_rows_avx512(const PairProduct& call);
bool few_rows_avx512(const PairProduct& call);
bool many_rows_avx512(const PairProduct& call);
bool few_rows_amx(const PairProduct& call);
bool many_rows_amx(const PairProduct& call);

// Rows [first, first + count) of the weight as float32 [count][columns].
void expand_rows_portable(const PairPanels& weight, std::int64_t first, std::int64_t count, float* rows, int threads);
void expand_rows_avx2(const PairPanels& weight, std::int64_t first, std::int64_t count, float* rows, int threads);

}  // namespace channelwise
