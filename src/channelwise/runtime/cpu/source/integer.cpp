// The integer product's entry: which level and which kernel a call takes.
#include "integer.hpp"

namespace channelwise {
namespace {

void run(const IntegerProduct& product, Level level) {
#if CHANNELWISE_X86
    switch (level) {
        case Level::amx:
            if (product.rows <= few_rows_beside_tiles) return few_rows_avx512(product);
            return product.rows <= few_rows_in_tiles ? few_rows_amx(product) : product_amx(product);
        case Level::avx512:
            return product.rows <= few_rows(product.bits) ? few_rows_avx512(product) : product_avx512(product);
        case Level::avx2:
            return product_avx2(product);
        case Level::portable:
            break;
    }
#else
    (void)level;
#endif
    product_portable(product);
}

}  // namespace
}  // namespace channelwise

using namespace channelwise;

void channelwise_integer_product(const channelwise_quad_panels* weight, const uint8_t* codes, int64_t rows,
                                 int32_t zero_point, const int32_t* zero_points, const int32_t* code_sums,
                                 const int32_t* offsets, const float* factor, const float* step, const float* bias,
                                 void* out, int32_t type, int32_t level, int32_t threads) {
    if (rows == 0 || weight->outputs == 0) return;
    const Epilogue epilogue{weight->sums, offsets, code_sums, zero_points, zero_point,
                            static_cast<int32_t>(weight->columns), factor, step, bias, out, static_cast<Output>(type)};
    const IntegerProduct product{codes, weight->panels, weight->table, weight->bits, rows, weight->outputs,
                                 weight->padded_columns, threads, epilogue};
    run(product, level_for(level));
}
