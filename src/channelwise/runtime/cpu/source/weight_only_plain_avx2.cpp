// The float32 products of pair panels for AVX2.
#include "weight_only_plain.hpp"

namespace channelwise {

bool pair_product_avx2(const PairProduct& call) { return product(call); }

void expand_rows_avx2(const PairPanels& weight, std::int64_t first, std::int64_t count, float* rows, int threads) {
    rows_of_weight(weight, first, count, rows, threads);
}

}  // namespace channelwise
