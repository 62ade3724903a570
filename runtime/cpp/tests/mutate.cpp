// Damaged manifests, arrays, pictures and sounds, in process: each is read or refused with a text.
//
//     mutate [COUNT [SEED]]    COUNT inputs in all; seeded, so that a failure can be repeated
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <sndfile.h>

#include "check.hpp"
#include "image_file.hpp"
#include "manifest.hpp"
#include "npy.hpp"
#include "preflight.hpp"
#include "resize.hpp"
#include "sample_manifest.hpp"
#include "sound.hpp"
#include "sound_file.hpp"

using save_core::Bytes;

namespace {

struct Kind {
    const char* name;
    std::vector<Bytes> seeds;
    std::function<void(const Bytes&)> read;
    int accepted = 0, refused = 0;
};

Bytes jpeg_bytes() {
    jpeg_compress_struct jpeg{};
    jpeg_error_mgr errors{};
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_compress(&jpeg);
    unsigned char* data = nullptr;
    unsigned long size = 0;
    jpeg_mem_dest(&jpeg, &data, &size);
    jpeg.image_width = 33, jpeg.image_height = 21, jpeg.input_components = 3;
    jpeg.in_color_space = JCS_RGB;
    jpeg_set_defaults(&jpeg);
    jpeg_start_compress(&jpeg, TRUE);
    std::vector<unsigned char> row(99);
    while (jpeg.next_scanline < jpeg.image_height) {
        for (std::size_t i = 0; i < row.size(); ++i)
            row[i] = static_cast<unsigned char>(i * 5 + jpeg.next_scanline * 9);
        JSAMPROW rows[1] = {row.data()};
        jpeg_write_scanlines(&jpeg, rows, 1);
    }
    jpeg_finish_compress(&jpeg);
    Bytes bytes(data, data + size);
    jpeg_destroy_compress(&jpeg);
    std::free(data);
    return bytes;
}

// A PCM file of 16 or 24 bits, little endian.
Bytes wav_bytes(int rate, int channels, int bytes_per_sample, int n) {
    Bytes wav;
    const auto text = [&](const char* s) { wav.insert(wav.end(), s, s + 4); };
    const auto number = [&](int value, int bytes) {
        for (int i = 0; i < bytes; ++i) wav.push_back(static_cast<unsigned char>(value >> 8 * i));
    };
    const int data = n * channels * bytes_per_sample;
    text("RIFF"), number(36 + data, 4), text("WAVE"), text("fmt "), number(16, 4), number(1, 2);
    number(channels, 2), number(rate, 4), number(rate * channels * bytes_per_sample, 4);
    number(channels * bytes_per_sample, 2), number(8 * bytes_per_sample, 2);
    text("data"), number(data, 4);
    for (int i = 0; i < n * channels; ++i) number(i * 977 % 20'000 - 10'000, bytes_per_sample);
    return wav;
}

Bytes png_bytes() {
    std::vector<std::uint8_t> gray(40 * 30);
    for (std::size_t i = 0; i < gray.size(); ++i) gray[i] = static_cast<std::uint8_t>(i * i % 253);
    return save_tools::encode_png_gray(gray.data(), 40, 30);
}

void read_manifest_text(const Bytes& bytes) {
    const auto manifest = save_core::parse_manifest(std::string(bytes.begin(), bytes.end()), "m");
    for (const auto& entry : manifest.engines) {
        save_core::check_library(entry, "1.7.1.116", "linux-x86_64");
        save_core::check_target(entry, 8, 9);
    }
}

void read_image_bytes(const Bytes& bytes) {
    const save_tools::Image image = save_tools::decode_image(bytes, "f");
    const save_frame frame{image.pixels.data(), image.width, image.height, 0};
    if (image.pixels.size() > 3 << 20) return;  // resizing it would only take time
    std::vector<std::uint8_t> small(16 * 16 * 3);
    save_core::check_frame(frame);
    save_core::resize_frame(frame, 16, small.data());
}

void read_sound_bytes(const Bytes& bytes) {
    const save_tools::SoundFile sound = save_tools::decode_sound(bytes, "s");
    std::vector<float> window(SAVE_WINDOW_SAMPLES);
    save_core::second(sound.view(), 0, window.data());
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
                    bytes.begin() + static_cast<long>(at + below(std::min<std::size_t>(bytes.size() - at, 16) + 1)));
                break;
            default: {  // a piece copied elsewhere
                const std::size_t n = below(std::min<std::size_t>(bytes.size() - at, 32) + 1);
                const Bytes piece(bytes.begin() + static_cast<long>(at),
                    bytes.begin() + static_cast<long>(at + n));
                bytes.insert(bytes.begin() + static_cast<long>(below(bytes.size())), piece.begin(), piece.end());
            }
        }
    }
    return bytes;
}

}  // namespace

int main(int argc, char** argv) {
    const int count = argc > 1 ? std::atoi(argv[1]) : 10'000;
    std::mt19937 random(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1);
    const std::string text = sample_manifest();
    const std::vector<float> values(60, 0.5F);
    std::vector<Kind> kinds;
    kinds.push_back({"manifest", {Bytes(text.begin(), text.end())}, read_manifest_text});
    kinds.push_back({"npy", {save_core::npy_bytes("float32", {3, 20}, values.data()),
                                save_core::npy_bytes("uint8", {240}, values.data())},
        [](const Bytes& bytes) { (void)save_core::parse_npy(bytes, "a"); }});
    kinds.push_back({"png", {png_bytes()}, read_image_bytes});
    kinds.push_back({"jpeg", {jpeg_bytes()}, read_image_bytes});
    kinds.push_back({"wav", {wav_bytes(16'000, 1, 2, 400), wav_bytes(44'100, 2, 3, 300)},
        read_sound_bytes});
    for (Kind& kind : kinds)
        for (const Bytes& seed : kind.seeds) kind.read(seed);  // throws: the seed itself is bad

    for (int i = 0; i < count; ++i) {
        Kind& kind = kinds[static_cast<std::size_t>(i) % kinds.size()];
        const Bytes bytes = mutated(kind.seeds[random() % kind.seeds.size()], random);
        try {
            kind.read(bytes);
            ++kind.accepted;
        } catch (const save_core::Error& error) {
            CHECK(error.what()[0] != '\0' && error.status() != SAVE_OK);
            ++kind.refused;
        }  // anything else ends the program: a defect
    }
    for (const Kind& kind : kinds) {
        std::printf("%-8s %5d read, %5d refused\n", kind.name, kind.accepted, kind.refused);
        CHECK(count < 1000 || (kind.refused > 0 && kind.accepted > 0));
    }
    return failures == 0 ? 0 : 1;
}
