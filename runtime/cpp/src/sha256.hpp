// SHA-256 (FIPS 180-4) of memory and files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace save_core {

class Sha256 {
public:
    // instructions: use those of the processor, where it has them.
    explicit Sha256(bool instructions = true) : instructions_(instructions) {}
    void update(const void* data, std::size_t size);
    // Of everything so far; the object is finished then.
    std::array<unsigned char, 32> bytes();
    std::string hex();

private:
    void blocks(const unsigned char* bytes, std::size_t n);

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
        0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> pending_{};
    std::uint64_t size_ = 0;
    bool instructions_;
};

std::string sha256_of(const void* data, std::size_t size);
// The 32 bytes of a sha256 of the sums of each 4 KiB as 64-bit numbers, and of the rest: they find
// damage, not deceit, at several times the speed (runtime/session/compiled.py).
std::string digest_of_sums(const void* data, std::size_t size);

}  // namespace save_core
