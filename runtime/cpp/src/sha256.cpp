#include "sha256.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#if defined(__x86_64__) && defined(__GNUC__)
#define SAVE_SHA_INSTRUCTIONS
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace save_core {
namespace {

// Fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
constexpr std::uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t rotate(std::uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

#if defined(SAVE_SHA_INSTRUCTIONS)

bool has_sha_instructions() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_SSSE3) == 0 || (c & bit_SSE4_1) == 0)
        return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_SHA) != 0;
}

// The state lies in two registers as the instructions want it, from the highest word: a b e f, c d g h.
__attribute__((target("sha,sse4.1"))) void add_blocks(
    std::uint32_t* state, const unsigned char* bytes, std::size_t n) {
    const auto load = [](const void* place) __attribute__((target("sse2"))) {
        return _mm_loadu_si128(static_cast<const __m128i*>(place));
    };
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    const __m128i cdab = _mm_shuffle_epi32(load(state), 0xb1);
    const __m128i efgh = _mm_shuffle_epi32(load(state + 4), 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; n > 0; --n, bytes += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];  // the last 16 words of the schedule, four rounds each
        for (int i = 0; i < 16; ++i) {
            __m128i& next = w[i % 4];
            if (i < 4) {
                next = _mm_shuffle_epi8(load(bytes + 16 * i), big_endian);
            } else {
                const __m128i last = w[(i + 3) % 4];
                next = _mm_sha256msg1_epu32(next, w[(i + 1) % 4]);
                next = _mm_add_epi32(next, _mm_alignr_epi8(last, w[(i + 2) % 4], 4));
                next = _mm_sha256msg2_epu32(next, last);
            }
            const __m128i added = _mm_add_epi32(next, load(kRound + 4 * i));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

#endif

// One block without special instructions.
void add_block(std::array<std::uint32_t, 8>& state, const unsigned char* bytes) {
    std::uint32_t w[64];
    for (int i = 0; i < 16; ++i)
        w[i] = static_cast<std::uint32_t>(bytes[4 * i]) << 24 |
               static_cast<std::uint32_t>(bytes[4 * i + 1]) << 16 |
               static_cast<std::uint32_t>(bytes[4 * i + 2]) << 8 | bytes[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
        const std::uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
        const std::uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; ++i) {
        const std::uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
        const std::uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        const std::uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + t1;
        d = c;
        c = b;
        b = a;
        a = t1 + t2;
    }
    const std::uint32_t mixed[8] = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state[i] += mixed[i];
}

}  // namespace

void Sha256::blocks(const unsigned char* bytes, std::size_t n) {
#if defined(SAVE_SHA_INSTRUCTIONS)
    static const bool fast = has_sha_instructions();
    if (fast && instructions_) return add_blocks(state_.data(), bytes, n);
#endif
    for (; n > 0; --n, bytes += 64) add_block(state_, bytes);
}

void Sha256::update(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    while (size > 0) {
        const std::size_t filled = size_ % 64;
        if (filled == 0 && size >= 64) {
            const std::size_t n = size / 64;
            blocks(bytes, n);
            bytes += 64 * n, size -= 64 * n, size_ += 64 * n;
            continue;
        }
        const std::size_t taken = std::min(size, 64 - filled);
        std::memcpy(pending_.data() + filled, bytes, taken);
        bytes += taken, size -= taken, size_ += taken;
        if (size_ % 64 == 0) blocks(pending_.data(), 1);
    }
}

std::array<unsigned char, 32> Sha256::bytes() {
    const std::uint64_t bits = 8 * size_;
    const unsigned char one = 0x80, zero = 0;
    update(&one, 1);
    while (size_ % 64 != 56) update(&zero, 1);
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    update(length, 8);
    std::array<unsigned char, 32> found;
    for (std::size_t i = 0; i < found.size(); ++i)
        found[i] = static_cast<unsigned char>(state_[i / 4] >> (24 - 8 * (i % 4)));
    return found;
}

std::string Sha256::hex() {
    std::string text;
    for (const unsigned char byte : bytes()) {
        text += "0123456789abcdef"[byte >> 4];
        text += "0123456789abcdef"[byte & 15];
    }
    return text;
}

std::string sha256_of(const void* data, std::size_t size) {
    Sha256 hash;
    hash.update(data, size);
    return hash.hex();
}

std::string digest_of_sums(const void* data, std::size_t size) {
    constexpr std::size_t kBlockBytes = 4096;
    const auto* bytes = static_cast<const unsigned char*>(data);
    Sha256 hash;
    std::array<std::uint64_t, kBlockBytes / sizeof(std::uint64_t)> words;
    for (; size >= kBlockBytes; size -= kBlockBytes, bytes += kBlockBytes) {
        std::memcpy(words.data(), bytes, kBlockBytes);
        const std::uint64_t sum = std::accumulate(words.begin(), words.end(), std::uint64_t{0});
        hash.update(&sum, sizeof sum);
    }
    hash.update(bytes, size);
    const auto found = hash.bytes();
    return std::string(found.begin(), found.end());
}

}  // namespace save_core
