#include "image_file.hpp"

#include <cstdint>
#include <cstring>

#include "error.hpp"
#include "image_codec.hpp"

namespace save_tools {

using save_core::Bytes;
using save_core::Error;

constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 30;  // as save_deploy/data/pictures.py

void refuse_image(const std::string& name, const std::string& reason) {
    throw Error(SAVE_DETAIL_DATA, "image cannot be read",
        name + ": " + save_core::printable(reason.empty() ? "unknown reason" : reason),
        "a PNG or JPEG file");
}

Image decode_image(const Bytes& bytes, const std::string& name) {
    const auto begins = [&](const char* magic, std::size_t n) {
        return bytes.size() >= n && std::memcmp(bytes.data(), magic, n) == 0;
    };
    if (begins("\x89PNG\r\n\x1a\n", 8)) return decode_png(bytes, name, false);
    if (begins("\xff\xd8\xff", 3)) return decode_jpeg(bytes, name);
    refuse_image(name, "neither PNG nor JPEG");
}

static Bytes read_all(const std::string& path) {
    if (!save_core::is_file(path))
        throw Error(SAVE_DETAIL_DATA, "image not found", path, "a PNG or JPEG file");
    const std::uint64_t size = save_core::file_size(path);
    if (size > kMaxBytes)
        throw Error(SAVE_DETAIL_DATA, "image of a size that cannot be used",
            path + ": " + std::to_string(size) + " bytes",
            "at most " + std::to_string(kMaxBytes) + " bytes");
    return save_core::read_file(path, SAVE_DETAIL_DATA, kMaxBytes);
}

Image read_image(const std::string& path) { return decode_image(read_all(path), path); }

Image read_gray(const std::string& path) { return decode_png(read_all(path), path, true); }

}  // namespace save_tools
