// PNG and JPEG files <-> pixels, as Python reads and writes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "files.hpp"

namespace save_tools {

struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> pixels;  // (height,width,3) RGB, or (height,width) gray
};

// RGB of a PNG (gray, palette and alpha too; alpha is dropped, 16 bits v become v >> 8) or a JPEG
// (gray or YCbCr), turned as Exif says. The same files as save_deploy/data/pictures.py reads.
// Throws Error(SAVE_DETAIL_DATA) for anything else and for truncated files.
Image decode_image(const save_core::Bytes& bytes, const std::string& name);
Image read_image(const std::string& path);
// Gray PNG without conversion: (height,width).
Image read_gray(const std::string& path);
save_core::Bytes encode_png_gray(const std::uint8_t* pixels, int width, int height);

}  // namespace save_tools
