// How the system is to map memory that weights lie in.
#include "levels.hpp"

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Asks for pages of 2 MB where [data, data + size) holds whole ones, before it is written to: reading a weight once per
// token then misses the processor's table of pages far less often. A wish: nothing happens where it is not granted.
CHANNELWISE_EXPORT void channelwise_prefer_large_pages(void* data, std::int64_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t begin = (address + page - 1) / page * page;
    const std::uintptr_t end = (address + static_cast<std::uintptr_t>(size)) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)size;
#endif
}
