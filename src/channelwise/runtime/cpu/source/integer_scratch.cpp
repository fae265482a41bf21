// Memory that a thread keeps from call to call.
#include "integer_scratch.hpp"

#include <cstdint>
#include <memory>

namespace channelwise {
namespace {

constexpr size_t alignment = 64;

struct Buffer {
    std::unique_ptr<unsigned char[]> memory;
    size_t size = 0;
};

}  // namespace

void* scratch(Scratch which, size_t bytes) {
    thread_local Buffer buffers[static_cast<int>(Scratch::count)];
    Buffer& buffer = buffers[static_cast<int>(which)];
    if (buffer.size < bytes + alignment) {
        buffer.size = bytes + alignment;
        buffer.memory.reset(new unsigned char[buffer.size]);
    }
    const auto address = reinterpret_cast<uintptr_t>(buffer.memory.get());
    return buffer.memory.get() + (-address & (alignment - 1));
}

}  // namespace channelwise
