// libjpeg reports errors by a call that must not return: longjmp, past frames without destructors.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

#include <jpeglib.h>

#include <jerror.h>

#include "error.hpp"
#include "image_codec.hpp"
#include "resize.hpp"

namespace save_tools {
namespace {

using save_core::Error;

struct Handler {
    jpeg_error_mgr manager;  // first: libjpeg sees only this
    std::jmp_buf place;
    char text[JMSG_LENGTH_MAX];
};

[[noreturn]] void on_error(j_common_ptr info) {
    auto* handler = reinterpret_cast<Handler*>(info->err);
    (*info->err->format_message)(info, handler->text);
    std::longjmp(handler->place, 1);
}

// Libjpeg completes a file that ends too early with gray; that is no picture of anything.
void on_message(j_common_ptr info, int level) {
    if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) on_error(info);
}

void on_output(j_common_ptr) {}

bool read_header(jpeg_decompress_struct* jpeg, Handler* handler, const unsigned char* data,
    unsigned long size) {
    if (setjmp(handler->place) != 0) return false;
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, data, size);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);  // Exif
    jpeg_read_header(jpeg, TRUE);
    return true;
}

// A progressive file is decoded into memory as a whole, 128 bytes a block of at least one bit in the
// file: a header that promises more than its file can hold gets no memory for it.
constexpr std::size_t kMemoryFloor = 16 << 20;
constexpr std::size_t kMemoryPerByte = 2 * 8 * 128;

void limit_memory(jpeg_decompress_struct* jpeg, std::size_t file_bytes) {
    const std::size_t most = std::numeric_limits<long>::max() / kMemoryPerByte;
    jpeg->mem->max_memory_to_use =
        static_cast<long>(kMemoryFloor + kMemoryPerByte * std::min(file_bytes, most - kMemoryFloor));
}

int orientation_of(const jpeg_decompress_struct& jpeg) {
    for (const jpeg_marker_struct* marker = jpeg.marker_list; marker != nullptr; marker = marker->next)
        if (marker->data_length >= 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0)
            return orientation(marker->data, marker->data_length);
    return 1;
}

bool start(jpeg_decompress_struct* jpeg, Handler* handler) {
    if (setjmp(handler->place) != 0) return false;
    jpeg->out_color_space = JCS_RGB;
    jpeg_start_decompress(jpeg);
    return true;
}

bool read_row(jpeg_decompress_struct* jpeg, Handler* handler, JSAMPROW row) {
    if (setjmp(handler->place) != 0) return false;
    jpeg_read_scanlines(jpeg, &row, 1);
    return true;
}

bool finish(jpeg_decompress_struct* jpeg, Handler* handler) {
    if (setjmp(handler->place) != 0) return false;
    jpeg_finish_decompress(jpeg);
    return true;
}

struct Decoder {
    Handler handler{};
    jpeg_decompress_struct jpeg{};
    Decoder() {
        jpeg.err = jpeg_std_error(&handler.manager);
        handler.manager.error_exit = on_error;
        handler.manager.emit_message = on_message;
        handler.manager.output_message = on_output;
    }
    Decoder(const Decoder&) = delete;
    Decoder& operator=(const Decoder&) = delete;
    ~Decoder() { jpeg_destroy_decompress(&jpeg); }
};

}  // namespace

Image decode_jpeg(const save_core::Bytes& bytes, const std::string& name) {
    Decoder decoder;
    jpeg_decompress_struct& jpeg = decoder.jpeg;
    const auto size = static_cast<unsigned long>(bytes.size());
    if (!read_header(&jpeg, &decoder.handler, bytes.data(), size))
        refuse_image(name, decoder.handler.text);
    const int width = static_cast<int>(jpeg.image_width), height = static_cast<int>(jpeg.image_height);
    save_core::check_size(width, height, SAVE_DETAIL_DATA, "image of a size that cannot be used");
    if (jpeg.jpeg_color_space == JCS_CMYK || jpeg.jpeg_color_space == JCS_YCCK)
        throw Error(SAVE_DETAIL_DATA, "image of print colors (CMYK)", name, "RGB or gray",
            "convert the image to RGB");
    const int turn = orientation_of(jpeg);  // its markers are gone after jpeg_finish_decompress
    limit_memory(&jpeg, bytes.size());
    if (!start(&jpeg, &decoder.handler)) refuse_image(name, decoder.handler.text);
    if (jpeg.output_components != 3) refuse_image(name, "not 3 channels");
    Image image{width, height, {}};
    const std::size_t row = 3 * static_cast<std::size_t>(width);
    while (jpeg.output_scanline < jpeg.output_height) {
        // grows with what was read: a header alone takes no memory
        image.pixels.resize((jpeg.output_scanline + std::size_t{1}) * row);
        if (!read_row(&jpeg, &decoder.handler, &image.pixels[jpeg.output_scanline * row]))
            refuse_image(name, decoder.handler.text);
    }
    if (!finish(&jpeg, &decoder.handler)) refuse_image(name, decoder.handler.text);
    return upright(std::move(image), turn);
}

}  // namespace save_tools
