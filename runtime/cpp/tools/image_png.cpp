// libpng reports errors by longjmp: no object with a destructor lives in the frames it skips.
#include <png.h>

#include <cstring>
#include <utility>

#include "error.hpp"
#include "image_codec.hpp"
#include "resize.hpp"

namespace save_tools {
namespace {

using save_core::Bytes;
using save_core::Error;

struct Source {
    const unsigned char* data;
    std::size_t left;
};

struct Message {
    char text[160];
};

void on_error(png_structp png, png_const_charp message) {
    auto* place = static_cast<Message*>(png_get_error_ptr(png));
    std::strncpy(place->text, message, sizeof place->text - 1);
    png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

void read_some(png_structp png, png_bytep data, png_size_t size) {
    auto* source = static_cast<Source*>(png_get_io_ptr(png));
    if (size > source->left) png_error(png, "file is truncated");
    std::memcpy(data, source->data, size);
    source->data += size;
    source->left -= size;
}

void write_some(png_structp png, png_bytep data, png_size_t size) {
    auto* bytes = static_cast<Bytes*>(png_get_io_ptr(png));
    try {
        bytes->insert(bytes->end(), data, data + size);
    } catch (...) {
        bytes->clear();  // png_error must not be called while an exception is in flight
        bytes = nullptr;
    }
    if (bytes == nullptr) png_error(png, "out of memory");
}

void flush(png_structp) {}

struct Header {
    png_uint_32 width, height;
    int bits, color, interlace;
};

// Each step returns false after an error; `message` says which.
bool read_header(png_structp png, png_infop info, Header* header) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    // a wrong checksum anywhere is a damaged file, as save_deploy/data/png_chunks.py has it
    png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(png, info);
    png_get_IHDR(png, info, &header->width, &header->height, &header->bits, &header->color,
        &header->interlace, nullptr, nullptr);
    return true;
}

bool set_output(png_structp png, png_infop info, bool gray, std::size_t* row_bytes) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_set_strip_16(png);
    png_set_packing(png);
    png_set_palette_to_rgb(png);
    png_set_expand_gray_1_2_4_to_8(png);
    png_set_strip_alpha(png);
    if (!gray) png_set_gray_to_rgb(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    *row_bytes = png_get_rowbytes(png, info);
    return true;
}

bool read_rows(png_structp png, png_infop info, png_bytepp rows) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_read_image(png, rows);
    png_read_end(png, info);
    return true;
}

bool read_orientation(png_structp png, png_infop info, int* found) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
#ifdef PNG_eXIf_SUPPORTED
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    if (png_get_eXIf_1(png, info, &size, &exif) != 0) *found = orientation(exif, size);
#endif
    return true;
}

bool write_rows(png_structp png, png_infop info, const Header& header, png_const_bytep pixels) {
    if (setjmp(png_jmpbuf(png)) != 0) return false;
    png_set_IHDR(png, info, header.width, header.height, 8, PNG_COLOR_TYPE_GRAY, PNG_INTERLACE_NONE,
        PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    for (png_uint_32 y = 0; y < header.height; ++y)
        png_write_row(png, pixels + static_cast<std::size_t>(y) * header.width);
    png_write_end(png, info);
    return true;
}

struct Reader {
    Message message{};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &message, on_error, on_warning);
    png_infop info = png != nullptr ? png_create_info_struct(png) : nullptr;
    Reader() = default;
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;
    ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

struct Writer {
    Message message{};
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &message, on_error, on_warning);
    png_infop info = png != nullptr ? png_create_info_struct(png) : nullptr;
    Writer() = default;
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;
    ~Writer() { png_destroy_write_struct(&png, &info); }
};

// What deflate can make of a byte, rounded up.
constexpr std::uint64_t kMaxExpansion = 1040;

}  // namespace

Image decode_png(const Bytes& bytes, const std::string& name, bool gray) {
    Source source{bytes.data(), bytes.size()};
    Reader reader;
    if (reader.info == nullptr) throw std::bad_alloc();
    png_set_read_fn(reader.png, &source, read_some);
    Header header{};
    if (!read_header(reader.png, reader.info, &header)) refuse_image(name, reader.message.text);
    if (header.width > save_core::kMaxSide || header.height > save_core::kMaxSide)
        refuse_image(name, "a side of more than 65535 pixels");
    const int width = static_cast<int>(header.width), height = static_cast<int>(header.height);
    save_core::check_size(width, height, SAVE_DETAIL_DATA, "image of a size that cannot be used");
    const bool is_gray = (header.color & (PNG_COLOR_MASK_COLOR | PNG_COLOR_MASK_PALETTE)) == 0;
    if (gray && !is_gray) refuse_image(name, "not a gray picture");
    // before memory is taken: one bit a pixel at least, and deflate expands that much at most
    if (static_cast<std::uint64_t>(width) * header.height / 8 > kMaxExpansion * bytes.size())
        refuse_image(name, "file is truncated");
    std::size_t row_bytes = 0;
    if (!set_output(reader.png, reader.info, gray, &row_bytes))
        refuse_image(name, reader.message.text);
    const std::size_t wanted = static_cast<std::size_t>(width) * (gray ? 1 : 3);
    if (row_bytes != wanted) refuse_image(name, "an unknown kind of pixels");
    Image image{width, height, {}};
    image.pixels.resize(wanted * header.height);
    std::vector<png_bytep> rows;
    for (std::size_t y = 0; y < header.height; ++y) rows.push_back(&image.pixels[y * wanted]);
    if (!read_rows(reader.png, reader.info, rows.data())) refuse_image(name, reader.message.text);
    int turn = 1;
    if (!read_orientation(reader.png, reader.info, &turn)) refuse_image(name, reader.message.text);
    return upright(std::move(image), turn);
}

Bytes encode_png_gray(const std::uint8_t* pixels, int width, int height) {
    Bytes bytes;
    Writer writer;
    if (writer.info == nullptr) throw std::bad_alloc();
    png_set_write_fn(writer.png, &bytes, write_some, flush);
    const Header header{static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), 8, 0, 0};
    if (!write_rows(writer.png, writer.info, header, pixels))
        throw Error(SAVE_DETAIL_DATA, "mask cannot be written", writer.message.text);
    return bytes;
}

}  // namespace save_tools
