// NumPy's .npy files, versions 1 and 2, C order, the dtypes of a bundle.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "files.hpp"

namespace save_core {

struct Npy {
    std::string dtype;  // float32 or uint8
    std::vector<std::int64_t> shape;
    Bytes data;

    std::size_t size() const;  // elements
    // Row i of the first axis. The caller has checked dtype and shape (see expect).
    const float* f32(std::size_t row = 0) const;
    const std::uint8_t* u8(std::size_t row = 0) const;
};

// Throws Error(SAVE_DETAIL_BUNDLE) for a foreign, truncated or unsupported file; `name` is shown.
Npy parse_npy(const Bytes& bytes, const std::string& name);
Npy read_npy(const std::string& path);
// Throws Error unless dtype and shape are these.
void expect(const Npy& array, const std::string& dtype, const std::vector<std::int64_t>& shape,
    const std::string& name);
// Bytes of a version 1 file.
Bytes npy_bytes(
    const std::string& dtype, const std::vector<std::int64_t>& shape, const void* data);
std::string shown(const std::vector<std::int64_t>& shape);

}  // namespace save_core
