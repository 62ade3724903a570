// Damaged manifests, arrays, pictures and sounds, in process: each is read or refused with a text.
//
//     mutate [COUNT [SEED]]    COUNT inputs of each kind; seeded, so that a failure can be repeated
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "engine_check.hpp"
#include "image_file.hpp"
#include "manifest.hpp"
#include "mutants.hpp"
#include "npy.hpp"
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

void read_manifest_text(const Bytes& bytes) {
    const auto manifest = save_core::parse_manifest(std::string(bytes.begin(), bytes.end()), "m");
    save_core::Machine machine;
    machine.os = "linux-x86_64";
    machine.gpu = save_core::Gpu{"NVIDIA L4", 8, 9};
    machine.libraries["tensorrt_rtx"] = "1.7.1.116";
    for (const auto& entry : manifest.engines)
        (void)save_core::engine_refusals(entry, "no/such/folder", manifest, machine, true);
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
    kinds.push_back({"png", mutants::pngs(), read_image_bytes});
    kinds.push_back({"jpeg", {mutants::jpeg(false), mutants::jpeg(true)}, read_image_bytes});
    kinds.push_back({"wav", {mutants::wav(16'000, 1, 2, 400), mutants::wav(44'100, 2, 3, 300)},
        read_sound_bytes});
    for (Kind& kind : kinds)
        for (const Bytes& seed : kind.seeds) kind.read(seed);  // throws: the seed itself is bad

    const auto tried = [&](Kind& kind, const Bytes& bytes) {
        try {
            kind.read(bytes);
            ++kind.accepted;
        } catch (const save_core::Error& error) {
            CHECK(error.what()[0] != '\0' && error.status() != SAVE_OK);
            ++kind.refused;
        }  // anything else ends the program: a defect
    };
    for (Kind& kind : kinds) {
        const bool has_checksums = kind.name == std::string("png");
        for (int i = 0; i < count; ++i) {
            const Bytes bytes = mutants::mutated(kind.seeds[random() % kind.seeds.size()], random);
            tried(kind, has_checksums && i % 2 == 0 ? mutants::with_right_checksums(bytes) : bytes);
        }
    }
    for (const Kind& kind : kinds) {
        std::printf("%-8s %5d read, %5d refused\n", kind.name, kind.accepted, kind.refused);
        CHECK(count < 1000 || (kind.refused > 0 && kind.accepted > 0));
    }
    return failures == 0 ? 0 : 1;
}
