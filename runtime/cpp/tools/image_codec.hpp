// The two decoders behind decode_image.
#pragma once

#include <cstddef>
#include <new>
#include <string>

#include "image_file.hpp"

namespace save_tools {

Image decode_png(const save_core::Bytes& bytes, const std::string& name, bool gray);
Image decode_jpeg(const save_core::Bytes& bytes, const std::string& name);
[[noreturn]] void refuse_image(const std::string& name, const std::string& reason);

// 1 (upright) to 8 from an Exif block; 1 when it has none or cannot be read, as data/pictures.py.
int orientation(const unsigned char* exif, std::size_t size);
// The picture turned as viewers show it.
Image upright(Image image, int orientation);

}  // namespace save_tools
