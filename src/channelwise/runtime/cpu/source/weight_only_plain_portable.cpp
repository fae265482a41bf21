// The float32 products of pair panels for any processor.
#include "weight_only_plain.hpp"

namespace channelwise {

bool pair_product_portable(const PairProduct& call) { return product(call); }

void expand_rows_portable(const PairPanels& weight, std::int64_t first, std::int64_t count, float* rows, int threads) {
    rows_of_weight(weight, first, count, rows, threads);
}

}  // namespace channelwise
