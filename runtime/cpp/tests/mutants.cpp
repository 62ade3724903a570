#include "mutants.hpp"

#include <png.h>
#include <zlib.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <jpeglib.h>

namespace mutants {

using save_core::Bytes;

namespace {

constexpr png_uint_32 kWidth = 23, kHeight = 19;
constexpr std::size_t kSignature = 8;
// Exif with one entry: Orientation 6
constexpr unsigned char kExif[] = {'E', 'x', 'i', 'f', 0, 0, 'I', 'I', '*', 0, 8, 0, 0, 0, 1, 0, 0x12, 1,
    3, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0};
constexpr std::size_t kExifName = 6;  // a PNG has the block without its name

void append(png_structp png, png_bytep data, png_size_t size) {
    auto* bytes = static_cast<Bytes*>(png_get_io_ptr(png));
    bytes->insert(bytes->end(), data, data + size);
}

// libpng ends the program for an error here: the seeds are valid.
Bytes png_of(int color, int bits, int interlace) {
    Bytes bytes;
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
    png_infop info = png_create_info_struct(png);
    png_set_write_fn(png, &bytes, append, nullptr);
    png_set_IHDR(png, info, kWidth, kHeight, bits, color, interlace, PNG_COMPRESSION_TYPE_DEFAULT,
        PNG_FILTER_TYPE_DEFAULT);
    std::vector<png_color> palette;
    for (int i = 0; i < 16; ++i)
        palette.push_back({static_cast<png_byte>(i * 16), static_cast<png_byte>(255 - i), 7});
    if (color == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, palette.data(), 16);
    Bytes exif(kExif + kExifName, kExif + sizeof kExif);
    png_set_eXIf_1(png, info, static_cast<png_uint_32>(exif.size()), exif.data());
    png_write_info(png, info);
    const std::size_t row = png_get_rowbytes(png, info);
    std::vector<png_byte> pixels(row * kHeight);
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<png_byte>(i * i % 253);
    std::vector<png_bytep> rows;
    for (std::size_t y = 0; y < kHeight; ++y) rows.push_back(&pixels[y * row]);
    png_write_image(png, rows.data());
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    return bytes;
}

}  // namespace

std::vector<Bytes> pngs() {
    return {png_of(PNG_COLOR_TYPE_RGB, 8, PNG_INTERLACE_NONE),
        png_of(PNG_COLOR_TYPE_RGB, 8, PNG_INTERLACE_ADAM7),
        png_of(PNG_COLOR_TYPE_PALETTE, 4, PNG_INTERLACE_NONE),
        png_of(PNG_COLOR_TYPE_GRAY, 8, PNG_INTERLACE_NONE),
        png_of(PNG_COLOR_TYPE_GRAY, 1, PNG_INTERLACE_ADAM7),
        png_of(PNG_COLOR_TYPE_RGB, 16, PNG_INTERLACE_NONE),
        png_of(PNG_COLOR_TYPE_GRAY, 16, PNG_INTERLACE_NONE),
        png_of(PNG_COLOR_TYPE_GRAY_ALPHA, 16, PNG_INTERLACE_NONE)};
}

Bytes jpeg(bool progressive) {
    jpeg_compress_struct info{};
    jpeg_error_mgr errors{};
    info.err = jpeg_std_error(&errors);
    jpeg_create_compress(&info);
    unsigned char* data = nullptr;
    unsigned long size = 0;
    jpeg_mem_dest(&info, &data, &size);
    info.image_width = 33, info.image_height = 21, info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    if (progressive) jpeg_simple_progression(&info);
    jpeg_start_compress(&info, TRUE);
    jpeg_write_marker(&info, JPEG_APP0 + 1, kExif, sizeof kExif);
    std::vector<unsigned char> row(99);
    while (info.next_scanline < info.image_height) {
        for (std::size_t i = 0; i < row.size(); ++i)
            row[i] = static_cast<unsigned char>(i * 5 + info.next_scanline * 9);
        JSAMPROW rows[1] = {row.data()};
        jpeg_write_scanlines(&info, rows, 1);
    }
    jpeg_finish_compress(&info);
    Bytes bytes(data, data + size);
    jpeg_destroy_compress(&info);
    std::free(data);
    return bytes;
}

Bytes wav(int rate, int channels, int bytes_per_sample, int n) {
    Bytes bytes;
    const auto text = [&](const std::string& s) {
        for (const char c : s) bytes.push_back(static_cast<unsigned char>(c));
    };
    const auto number = [&](int value, int size) {
        for (int i = 0; i < size; ++i) bytes.push_back(static_cast<unsigned char>(value >> 8 * i));
    };
    const int data = n * channels * bytes_per_sample;
    text("RIFF"), number(36 + data, 4), text("WAVE"), text("fmt "), number(16, 4), number(1, 2);
    number(channels, 2), number(rate, 4), number(rate * channels * bytes_per_sample, 4);
    number(channels * bytes_per_sample, 2), number(8 * bytes_per_sample, 2);
    text("data"), number(data, 4);
    for (int i = 0; i < n * channels; ++i) number(i * 977 % 20'000 - 10'000, bytes_per_sample);
    return bytes;
}

Bytes mutated(const Bytes& seed, std::mt19937& random) {
    Bytes bytes = seed;
    const auto below = [&](std::size_t n) { return random() % n; };
    for (std::size_t edits = 1 + below(4); edits > 0 && !bytes.empty(); --edits) {
        // half of the edits near the start, where headers are
        const std::size_t reach = below(2) == 0 ? bytes.size() : std::min<std::size_t>(bytes.size(), 64);
        const std::size_t at = below(reach);
        switch (below(7)) {
            case 0: bytes[at] ^= static_cast<unsigned char>(1U << below(8)); break;
            case 1: bytes[at] = static_cast<unsigned char>(random()); break;
            case 2: bytes[at] = below(2) == 0 ? 0xff : 0; break;
            case 3: bytes.resize(at); break;
            case 4: bytes.insert(bytes.begin() + static_cast<long>(at), below(9), 0x39); break;
            case 5:
                bytes.erase(bytes.begin() + static_cast<long>(at),
                    bytes.begin() + static_cast<long>(
                                        at + below(std::min<std::size_t>(bytes.size() - at, 16) + 1)));
                break;
            default: {  // a piece copied elsewhere
                const std::size_t n = below(std::min<std::size_t>(bytes.size() - at, 32) + 1);
                const Bytes piece(bytes.begin() + static_cast<long>(at),
                    bytes.begin() + static_cast<long>(at + n));
                const auto place = bytes.begin() + static_cast<long>(below(bytes.size()));
                bytes.insert(place, piece.begin(), piece.end());
            }
        }
    }
    return bytes;
}

Bytes with_right_checksums(Bytes png) {
    for (std::size_t at = kSignature; at + 12 <= png.size();) {
        const auto number = [&](std::size_t place) {
            std::size_t value = 0;
            for (std::size_t i = 0; i < 4; ++i) value = value << 8 | png[place + i];
            return value;
        };
        const std::size_t length = number(at);
        if (length > png.size() - at - 12) break;
        const std::size_t end = at + 8 + length;
        const unsigned long sum = crc32(0, &png[at + 4], static_cast<unsigned>(4 + length));
        for (std::size_t i = 0; i < 4; ++i)
            png[end + i] = static_cast<unsigned char>(sum >> (24 - 8 * i));
        at = end + 4;
    }
    return png;
}

}  // namespace mutants
