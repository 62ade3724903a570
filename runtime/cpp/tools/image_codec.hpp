// The two decoders behind decode_image.
#pragma once

#include <new>
#include <string>

#include "image_file.hpp"

namespace save_tools {

Image decode_png(const save_core::Bytes& bytes, const std::string& name, bool gray);
Image decode_jpeg(const save_core::Bytes& bytes, const std::string& name);
[[noreturn]] void refuse_image(const std::string& name, const std::string& reason);

}  // namespace save_tools
