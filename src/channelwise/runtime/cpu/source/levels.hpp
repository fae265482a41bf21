// Instruction set levels, one of which every kernel runs at, and the marks for what the library exports.
// The functions of a level live in files named after it (`*_avx2.cpp`, …), the only ones compiled with its flags; what
// such files share through headers is in anonymous namespaces, so that no level is linked to another's code.
#pragma once

#if defined(__x86_64__)
#define CHANNELWISE_X86 1
#else
#define CHANNELWISE_X86 0
#endif

#define CHANNELWISE_EXPORT extern "C" __attribute__((visibility("default")))

namespace channelwise {

// In rising order; each holds all before it.
enum class Level : int { portable = 1, avx2 = 2, avx512 = 3, amx = 4 };

// The level that a call asks for: 0 stands for the best allowed, and none is above what the processor has.
Level level_for(int requested);

}  // namespace channelwise

// The best allowed level, 1 … 4.
CHANNELWISE_EXPORT int channelwise_level();

// From now on 0 stands for this level at most; 0 lifts the limit.
CHANNELWISE_EXPORT void channelwise_limit_level(int limit);
