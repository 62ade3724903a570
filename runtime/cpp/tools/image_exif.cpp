// Which way up a picture is: Exif's tag Orientation, and turning by it.
#include <cstring>

#include "image_codec.hpp"

namespace save_tools {
namespace {

constexpr std::size_t kEntryBytes = 12;
constexpr unsigned kOrientation = 0x0112, kShort = 3;

// A TIFF structure; what lies behind its end reads as 0, which is no value of any field used here.
struct Tiff {
    const unsigned char* data;
    std::size_t size;
    bool little;

    std::size_t number(std::size_t at, std::size_t n_bytes) const {
        if (at > size || n_bytes > size - at) return 0;
        std::size_t value = 0;
        for (std::size_t i = 0; i < n_bytes; ++i)
            value = value << 8 | data[at + (little ? n_bytes - 1 - i : i)];
        return value;
    }
};

}  // namespace

int orientation(const unsigned char* exif, std::size_t size) {
    if (size >= 6 && std::memcmp(exif, "Exif\0\0", 6) == 0) exif += 6, size -= 6;
    if (size < 8) return 1;
    const bool little = std::memcmp(exif, "II*\0", 4) == 0;
    if (!little && std::memcmp(exif, "MM\0*", 4) != 0) return 1;
    const Tiff tiff{exif, size, little};
    const std::size_t start = tiff.number(4, 4), n_entries = tiff.number(start, 2);
    for (std::size_t i = 0; i < n_entries; ++i) {
        const std::size_t at = start + 2 + kEntryBytes * i;
        if (at > size || size - at < kEntryBytes - 2) return 1;
        if (tiff.number(at, 2) != kOrientation) continue;
        const std::size_t value = tiff.number(at + 8, 2);
        const bool is_one = tiff.number(at + 2, 2) == kShort && tiff.number(at + 4, 4) == 1;
        return is_one && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
    }
    return 1;
}

Image upright(Image image, int orientation) {
    if (orientation <= 1) return image;
    const bool turned = orientation >= 5;  // width and height change places
    const bool from_right = orientation == 2 || orientation == 3 || orientation >= 7;
    const bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const auto width = static_cast<std::size_t>(image.width);
    const auto height = static_cast<std::size_t>(image.height);
    const std::size_t channels = image.pixels.size() / (width * height);
    Image out{turned ? image.height : image.width, turned ? image.width : image.height, {}};
    out.pixels.resize(image.pixels.size());
    std::uint8_t* to = out.pixels.data();
    for (std::size_t y = 0; y < static_cast<std::size_t>(out.height); ++y)
        for (std::size_t x = 0; x < static_cast<std::size_t>(out.width); ++x, to += channels) {
            std::size_t in_x = turned ? y : x, in_y = turned ? x : y;
            if (from_right) in_x = width - 1 - in_x;
            if (from_below) in_y = height - 1 - in_y;
            std::memcpy(to, &image.pixels[(in_y * width + in_x) * channels], channels);
        }
    return out;
}

}  // namespace save_tools
