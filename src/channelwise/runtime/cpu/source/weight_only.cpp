// What Python calls: the weight-only product and the weight's rows, at the level that is asked for.
#include "weight_only.hpp"

namespace channelwise {
namespace {

constexpr std::int64_t few_rows = 16;

// With tiles, more rows are faster as bfloat16 numbers.
constexpr std::int64_t digit_rows_beside_tiles = 4;

bool product_at(Level level, const PairProduct& call) {
#if CHANNELWISE_X86
    const bool few = call.rows <= few_rows;
    const std::int64_t most = level == Level::amx ? digit_rows_beside_tiles : few_rows;
    if (level >= Level::avx512 && call.rows <= most && digit_rows_avx512(call)) return true;
    if (level == Level::amx && (few ? few_rows_amx(call) : many_rows_amx(call))) return true;
    if (level >= Level::avx512) return few ? few_rows_avx512(call) : many_rows_avx512(call);
    if (level == Level::avx2) return few && pair_product_avx2(call);
#endif
    (void)level;
    return call.rows <= few_rows && pair_product_portable(call);
}

}  // namespace
}  // namespace channelwise

// y = x · Ŵᵀ + bias; level 0: the best. 1: no kernel for so many rows of this type, y is untouched.
CHANNELWISE_EXPORT int channelwise_pair_product(const channelwise::PairPanels* weight, const void* x, std::int64_t rows,
                                                std::int64_t x_stride, int x_type, const float* bias, void* y,
                                                int y_type, int threads, int level) {
    using namespace channelwise;
    const PairProduct call{*weight, x, rows, x_stride, static_cast<Number>(x_type),
                           bias,    y, static_cast<Number>(y_type), threads};
    return product_at(level_for(level), call) ? 0 : 1;
}

// Rows [first, first + count) of the weight as float32 [count][columns], equal to the checkpoint's decoded values.
CHANNELWISE_EXPORT void channelwise_expand_pairs(const channelwise::PairPanels* weight, std::int64_t first,
                                                 std::int64_t count, float* rows, int threads, int level) {
    using namespace channelwise;
#if CHANNELWISE_X86
    if (level_for(level) >= Level::avx2) return expand_rows_avx2(*weight, first, count, rows, threads);
#endif
    (void)level;
    expand_rows_portable(*weight, first, count, rows, threads);
}
