// The input quantizers, compiled for any processor.
#include "quantize_rows.hpp"

namespace channelwise {

void static_portable(const channelwise_input& in, const channelwise_grid& grid, const StaticVectors& v, int threads) {
    static_bytes(in, grid, v, threads);
}

void token_portable(const channelwise_input& in, const channelwise_grid& grid, const TokenParts& t, int threads) {
    token_bytes(in, grid, t, threads);
}

}  // namespace channelwise
