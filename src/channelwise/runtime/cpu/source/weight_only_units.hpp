// How codes share registers in pair panels. A chunk is two consecutive inputs of 16 outputs, one 16-bit word each; a
// unit is one or three registers whose words hold the codes of several chunks. No code crosses a byte, so that bytes
// can be multiplied as well as words: of 3 and 6 bits, what is left over at the top of three bytes makes another one.
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
    // Codes that lie in one byte whole, low bits first, and how many bits are left above them.
    static constexpr int per_byte = 8 / bits;
    static constexpr int left = 8 - per_byte * bits;
    // Chunks that lie in one register whole: first those in the lower bytes, then those in the upper ones.
    static constexpr int whole = 2 * per_byte;
};

// Where a chunk's code begins in a word; of what is left over, in the byte that three registers' left bits make.
template <int bits>
constexpr int bit_of(int chunk) {
    using U = Unit<bits>;
    return bits * (chunk % U::whole % U::per_byte);
}

// The lowest bit of the byte in which a chunk's code lies: 0 or 8.
template <int bits>
constexpr int byte_of(int chunk) {
    using U = Unit<bits>;
    return 8 * (chunk % U::whole / U::per_byte);
}

// The code of a chunk from a unit's words; Word: unsigned 16-bit numbers, or vectors of them.
template <int bits, int chunk, class Word>
inline Word code_of(const Word* word) {
    using U = Unit<bits>;
    constexpr int mask = (1 << bits) - 1, byte = byte_of<bits>(chunk), bit = bit_of<bits>(chunk);
    if constexpr (chunk < U::registers * U::whole) {
        return (word[chunk / U::whole] >> (byte + bit)) & mask;
    } else {
        constexpr int left = (1 << U::left) - 1, shift = byte + 8 - U::left;
        const Word top = ((word[0] >> shift) & left) | (((word[1] >> shift) & left) << U::left) |
                         (((word[2] >> shift) & left) << (2 * U::left));
        return (top >> bit) & mask;
    }
}

// The inverse: sets the chunk's bits in words that are zero there.
template <int bits, int chunk>
inline void put_code(std::uint16_t* word, unsigned code) {
    using U = Unit<bits>;
    constexpr int byte = byte_of<bits>(chunk), bit = bit_of<bits>(chunk);
    if constexpr (chunk < U::registers * U::whole) {
        word[chunk / U::whole] |= static_cast<std::uint16_t>(code << (byte + bit));
    } else {
        constexpr int left = (1 << U::left) - 1, shift = byte + 8 - U::left;
        for (int i = 0; i < 3; ++i) {
            word[i] |= static_cast<std::uint16_t>(((code << bit) >> (i * U::left) & left) << shift);
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
