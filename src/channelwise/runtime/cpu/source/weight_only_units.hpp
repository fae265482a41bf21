// How codes share registers in pair panels. A chunk is two consecutive inputs of 16 outputs, one 16-bit word each; a
// unit is one or three registers whose words hold the codes of several chunks.
#pragma once

#include <cstdint>

namespace channelwise {
namespace {

template <int bits>
struct Unit {
    static_assert(bits == 2 || bits == 3 || bits == 4 || bits == 6 || bits == 8);
    static constexpr int registers = bits == 3 || bits == 6 ? 3 : 1;
    static constexpr int chunks = 16 * registers / bits;
    static constexpr int columns = 2 * chunks;
    static constexpr int bytes = 64 * registers;
    // Chunks that lie in one register whole; the others are spread over the top bits of all three.
    static constexpr int whole = 16 / bits;
    static constexpr int top = 16 - whole * bits;
};

// The code of a chunk from a unit's words; Word: unsigned 16-bit numbers, or vectors of them.
template <int bits, int chunk, class Word>
inline Word code_of(const Word* word) {
    using U = Unit<bits>;
    constexpr int mask = (1 << bits) - 1;
    if constexpr (chunk < U::registers * U::whole) {
        return (word[chunk / U::whole] >> (bits * (chunk % U::whole))) & mask;
    } else {
        constexpr int shift = bits * (chunk - U::registers * U::whole);
        const Word top = (word[0] >> (16 - U::top)) | ((word[1] >> (16 - U::top)) << U::top) |
                         ((word[2] >> (16 - U::top)) << (2 * U::top));
        return (top >> shift) & mask;
    }
}

// The inverse: sets the chunk's bits in words that are zero there.
template <int bits, int chunk>
inline void put_code(std::uint16_t* word, unsigned code) {
    using U = Unit<bits>;
    if constexpr (chunk < U::registers * U::whole) {
        word[chunk / U::whole] |= static_cast<std::uint16_t>(code << (bits * (chunk % U::whole)));
    } else {
        const unsigned top = code << (bits * (chunk - U::registers * U::whole));
        for (int i = 0; i < 3; ++i) {
            const unsigned part = (top >> (i * U::top)) & ((1u << U::top) - 1);
            word[i] |= static_cast<std::uint16_t>(part << (16 - U::top));
        }
    }
}

// Calls f with the constants 0 … count − 1.
template <int index>
struct Constant {
    static constexpr int value = index;
};

template <int count, int index = 0, class F>
__attribute__((always_inline)) inline void unrolled(F&& f) {
    if constexpr (index < count) {
        f(Constant<index>{});
        unrolled<count, index + 1>(f);
    }
}

// Calls f with Constant<bits>; false for a width without panels.
template <class F>
inline bool for_width(int bits, F&& f) {
    switch (bits) {
        case 2: f(Constant<2>{}); return true;
        case 3: f(Constant<3>{}); return true;
        case 4: f(Constant<4>{}); return true;
        case 6: f(Constant<6>{}); return true;
        case 8: f(Constant<8>{}); return true;
        default: return false;
    }
}

}  // namespace
}  // namespace channelwise
