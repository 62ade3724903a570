// SHA-256 (FIPS 180-4) of memory and files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace save_core {

class Sha256 {
public:
    void update(const void* data, std::size_t size);
    std::string hex();  // of everything so far; the object is finished then

private:
    void block(const unsigned char* bytes);

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f,
        0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> pending_{};
    std::uint64_t size_ = 0;
};

std::string sha256_of(const void* data, std::size_t size);

}  // namespace save_core
