// The entries of the input quantizers: which level a call takes.
#include "quantize.hpp"

using namespace channelwise;

void channelwise_static_bytes(const channelwise_input* in, const channelwise_grid* grid, const float* multiplier,
                              const float* offset, const float* gain, int32_t level, int32_t threads) {
    const StaticVectors vectors{multiplier, offset, gain};
#if CHANNELWISE_X86
    if (level_for(level) >= Level::avx512) return static_avx512(*in, *grid, vectors, threads);
    if (level_for(level) == Level::avx2) return static_avx2(*in, *grid, vectors, threads);
#else
    (void)level;
#endif
    static_portable(*in, *grid, vectors, threads);
}

void channelwise_token_bytes(const channelwise_input* in, const channelwise_grid* grid, const float* shift,
                             const float* scale, float range, float unit, float* steps, int32_t* zero_points,
                             int32_t level, int32_t threads) {
    const TokenParts parts{shift, scale, range, unit, steps, zero_points};
#if CHANNELWISE_X86
    if (level_for(level) >= Level::avx512) return token_avx512(*in, *grid, parts, threads);
    if (level_for(level) == Level::avx2) return token_avx2(*in, *grid, parts, threads);
#else
    (void)level;
#endif
    token_portable(*in, *grid, parts, threads);
}
