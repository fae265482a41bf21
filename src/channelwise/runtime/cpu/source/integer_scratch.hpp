// Memory that a thread keeps from call to call, so that calls do not wait for fresh pages.
#pragma once

#include <cstddef>

namespace channelwise {

// Buffers with lives of their own.
enum class Scratch : int { inputs = 0, weights = 1, sums = 2, count = 3 };

// At least `bytes` bytes at a multiple of 64, with whatever they hold; valid until the thread asks again.
void* scratch(Scratch which, size_t bytes);

template <class T>
T* scratch_of(Scratch which, size_t count) {
    return static_cast<T*>(scratch(which, count * sizeof(T)));
}

}  // namespace channelwise
