/* Two ways to read a buffer with all threads, for bandwidth.py: the sum of its 64-bit words. */
#include <omp.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t vector __attribute__((vector_size(64), aligned(64)));

static uint64_t total(vector v) {
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++) sum += v[i];
    return sum;
}

/* One stream per thread; bytes: a multiple of 256 per thread is read. ahead: bytes to prefetch, 0 leaves it to the CPU. */
uint64_t read_stream(const char* data, size_t bytes, int threads, size_t ahead) {
    uint64_t sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        const size_t share = bytes / omp_get_num_threads() / 256 * 256, first = share * omp_get_thread_num();
        vector a = {0}, b = {0}, c = {0}, d = {0};
        for (size_t i = first; i < first + share; i += 256) {
            const vector* v = (const vector*)(data + i);
            if (ahead)
                for (int line = 0; line < 4; line++) __builtin_prefetch(data + i + ahead + 64 * line);
            a += v[0], b += v[1], c += v[2], d += v[3];
        }
        sum += total(a + b + c + d);
    }
    return sum;
}

/* Four streams per thread, 32 KiB apart. */
uint64_t read_streams(const char* data, size_t bytes, int threads, size_t ahead) {
    const size_t block = 32768;
    uint64_t sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
        const size_t share = bytes / omp_get_num_threads() / (4 * block) * (4 * block);
        const size_t first = share * omp_get_thread_num();
        vector s[4] = {{0}};
        for (size_t i = first; i < first + share; i += 4 * block)
            for (size_t j = 0; j < block; j += 64)
                for (int k = 0; k < 4; k++) {
                    const char* line = data + i + k * block + j;
                    if (ahead) __builtin_prefetch(line + ahead);
                    s[k] += *(const vector*)line;
                }
        sum += total(s[0] + s[1] + s[2] + s[3]);
    }
    return sum;
}
