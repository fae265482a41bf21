// The integer product with AVX2: bytes become 16-bit numbers, whose pairwise products vpmaddwd adds up exactly.
#include <immintrin.h>

#include "integer_blocked.hpp"

namespace channelwise {
namespace {

// Values of codes in the low bits of every byte, from a table in 16-byte parts. Of 4 bits and fewer the table is one
// part, the values repeated, so that bits above a code need no masks of their own.
template <int bits>
struct Lookup {
    static constexpr int parts = bits == 6 ? 4 : 1;
    __m256i part[parts];

    explicit Lookup(const int8_t* table) {
        for (int i = 0; i < parts; ++i) {
            part[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * i)));
        }
    }

    __m256i operator()(__m256i codes) const {
        const __m256i low = _mm256_and_si256(codes, _mm256_set1_epi8(0x0f));
        if constexpr (parts == 1) return _mm256_shuffle_epi8(part[0], low);
        // A code's bits 4 and 5, as the bytes' top bits, choose the part.
        const __m256i by4 = _mm256_slli_epi16(codes, 3), by5 = _mm256_slli_epi16(codes, 2);
        const __m256i lower = _mm256_blendv_epi8(_mm256_shuffle_epi8(part[0], low),
                                                 _mm256_shuffle_epi8(part[parts / 4], low), by4);
        const __m256i upper = _mm256_blendv_epi8(_mm256_shuffle_epi8(part[parts / 2], low),
                                                 _mm256_shuffle_epi8(part[parts - 1], low), by4);
        return _mm256_blendv_epi8(lower, upper, by5);
    }
};

inline __m256i load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

// The six bits that the upper two of three registers' bytes make; bits above them are anything.
inline __m256i upper_bits(__m256i a, __m256i b, __m256i c) {
    const __m256i two = _mm256_set1_epi8(0x03), four = _mm256_set1_epi8(0x0c), six = _mm256_set1_epi8(0x30);
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 6), two),
                           _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 4), four),
                                           _mm256_and_si256(_mm256_srli_epi16(c, 2), six)));
}

template <int bits>
void expand_units(const int8_t* table, const uint8_t* from, int64_t units, int8_t* to) {
    const Lookup<bits> values(table);
    for (; units > 0; --units, from += unit_bytes(bits), to += unit_chunks(bits) * chunk_bytes) {
        for (int half = 0; half < chunk_bytes; half += 32) {
            const auto store = [&](int chunk, __m256i codes) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + chunk * chunk_bytes + half), values(codes));
            };
            const __m256i a = load(from + half);
            if constexpr (bits == 4 || bits == 2) {
                store(0, a);
                store(1, _mm256_srli_epi16(a, bits));
                if constexpr (bits == 2) store(2, _mm256_srli_epi16(a, 4)), store(3, _mm256_srli_epi16(a, 6));
            } else {
                const __m256i b = load(from + half + chunk_bytes), c = load(from + half + 2 * chunk_bytes);
                const __m256i upper = upper_bits(a, b, c);
                if constexpr (bits == 6) {
                    store(0, a), store(1, b), store(2, c), store(3, upper);
                } else {
                    store(0, a), store(1, _mm256_srli_epi16(a, 3));
                    store(2, b), store(3, _mm256_srli_epi16(b, 3));
                    store(4, c), store(5, _mm256_srli_epi16(c, 3));
                    store(6, upper), store(7, _mm256_srli_epi16(upper, 3));
                }
            }
        }
    }
}

template <int rows>
void multiply_rows(const uint8_t* input, int64_t stride, const int8_t* weights, int64_t columns, int32_t* sums,
                   int64_t sums_stride, bool add) {
    __m256i total[rows][2];
    for (int row = 0; row < rows; ++row) {
        for (int half = 0; half < 2; ++half) {
            const auto* from = reinterpret_cast<const __m256i*>(sums + row * sums_stride + 8 * half);
            total[row][half] = add ? _mm256_loadu_si256(from) : _mm256_setzero_si256();
        }
    }
    for (int64_t column = 0; column < columns; column += chunk_columns, weights += chunk_bytes) {
        __m256i even[2], odd[2];
        for (int half = 0; half < 2; ++half) {
            const __m256i bytes = load(reinterpret_cast<const uint8_t*>(weights) + 32 * half);
            even[half] = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
            odd[half] = _mm256_srai_epi16(bytes, 8);
        }
        for (int row = 0; row < rows; ++row) {
            int32_t four;
            std::memcpy(&four, input + row * stride + column, sizeof four);
            const __m256i codes = _mm256_set1_epi32(four);
            const __m256i even_codes = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
            const __m256i odd_codes = _mm256_srli_epi16(codes, 8);
            for (int half = 0; half < 2; ++half) {
                const __m256i pairs = _mm256_add_epi32(_mm256_madd_epi16(even[half], even_codes),
                                                       _mm256_madd_epi16(odd[half], odd_codes));
                total[row][half] = _mm256_add_epi32(total[row][half], pairs);
            }
        }
    }
    for (int row = 0; row < rows; ++row) {
        for (int half = 0; half < 2; ++half) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + row * sums_stride + 8 * half), total[row][half]);
        }
    }
}

struct Avx2 {
    static constexpr int64_t row_step = 4, panel_step = 1, depth = 1024, block_rows = 256, column_step = chunk_columns;
    static constexpr bool fetches_ahead = false;

    struct Session {
        Session() {}
    };

    static size_t input_bytes(const IntegerProduct&) { return 0; }
    static void arrange(const IntegerProduct&, uint8_t*, int, int) {}
    static const uint8_t* input(const IntegerProduct& p, const uint8_t*, int64_t row, int64_t column) {
        return p.codes + row * p.columns + column;
    }

    static void expand(int bits, const int8_t* table, const uint8_t* from, int64_t units, int8_t* to) {
        switch (bits) {
            case 6:
                return expand_units<6>(table, from, units, to);
            case 4:
                return expand_units<4>(table, from, units, to);
            case 3:
                return expand_units<3>(table, from, units, to);
            default:
                return expand_units<2>(table, from, units, to);
        }
    }

    static void multiply(const IntegerProduct& p, const uint8_t* input, const int8_t* weights, int64_t, int64_t columns,
                         int32_t* sums, int64_t sums_stride, int64_t rows, int64_t, bool add) {
        switch (rows) {
            case 4:
                return multiply_rows<4>(input, p.columns, weights, columns, sums, sums_stride, add);
            case 3:
                return multiply_rows<3>(input, p.columns, weights, columns, sums, sums_stride, add);
            case 2:
                return multiply_rows<2>(input, p.columns, weights, columns, sums, sums_stride, add);
            default:
                return multiply_rows<1>(input, p.columns, weights, columns, sums, sums_stride, add);
        }
    }
};

}  // namespace

void product_avx2(const IntegerProduct& product) { run_blocked<Avx2>(product); }

}  // namespace channelwise
