// Which instruction set level this processor and its kernel allow.
#include "levels.hpp"

#include <atomic>

#if CHANNELWISE_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace channelwise {
namespace {

std::atomic<int> limit_of_level{0};

#if CHANNELWISE_X86

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
    return r;
}

constexpr bool all_bits(unsigned long long value, unsigned long long mask) { return (value & mask) == mask; }

constexpr unsigned bit(int index) { return 1u << index; }

// The register states that the operating system saves (XCR0).
unsigned long long saved_states() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<unsigned long long>(high) << 32 | low;
}

// Linux gives tiles to processes that ask for them.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

Level detected() {
    const Registers basic = cpuid(1, 0), extended = cpuid(7, 0), more = cpuid(7, 1);
    const unsigned avx = bit(28) | bit(12) | bit(29) | bit(27);  // AVX, FMA, F16C, OSXSAVE
    if (!all_bits(basic.ecx, avx) || !all_bits(saved_states(), 0x06) || !all_bits(extended.ebx, bit(5))) {
        return Level::portable;
    }
    const unsigned foundation = bit(16) | bit(17) | bit(30) | bit(31);  // F, DQ, BW, VL
    const unsigned vectors = bit(1) | bit(11);                          // VBMI, VNNI
    const bool avx512 = all_bits(extended.ebx, foundation) && all_bits(extended.ecx, vectors) &&
                        all_bits(more.eax, bit(5)) && all_bits(saved_states(), 0xe6);
    if (!avx512) return Level::avx2;
    const unsigned tiles = bit(22) | bit(24) | bit(25);  // BF16, TILE, INT8
    const bool amx = all_bits(extended.edx, tiles) && all_bits(saved_states(), 0x60000) && may_use_tiles();
    return amx ? Level::amx : Level::avx512;
}

#else

Level detected() { return Level::portable; }

#endif

Level best() {
    static const Level level = detected();
    return level;
}

Level lower(Level level, int other) {
    return static_cast<int>(level) <= other ? level : static_cast<Level>(other);
}

}  // namespace

Level level_for(int requested) {
    if (requested > 0) return lower(best(), requested);
    const int limit = limit_of_level.load(std::memory_order_relaxed);
    return limit > 0 ? lower(best(), limit) : best();
}

}  // namespace channelwise

int channelwise_level() { return static_cast<int>(channelwise::level_for(0)); }

void channelwise_limit_level(int limit) { channelwise::limit_of_level.store(limit); }
