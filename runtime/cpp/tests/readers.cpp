#include "readers.hpp"

#include <cstdint>

#include "engine_check.hpp"
#include "image_file.hpp"
#include "json.hpp"
#include "manifest.hpp"
#include "mutants.hpp"
#include "npy.hpp"
#include "resize.hpp"
#include "sample_manifest.hpp"
#include "sound.hpp"
#include "sound_file.hpp"

using save_core::Bytes;

namespace {

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

std::vector<Reader> readers() {
    const std::string text = sample_manifest();
    const std::vector<float> values(60, 0.5F);
    std::vector<Reader> found;
    found.push_back({"manifest", {Bytes(text.begin(), text.end())}, read_manifest_text});
    found.push_back({"json", {Bytes(text.begin(), text.end())}, [](const Bytes& bytes) {
        try {
            (void)save_core::parse_json(std::string(bytes.begin(), bytes.end()));
        } catch (const nlohmann::json::exception& error) {  // what parse_manifest turns into its error
            throw save_core::Error(SAVE_DETAIL_BUNDLE, error.what());
        }
    }});
    found.push_back({"npy", {save_core::npy_bytes("float32", {3, 20}, values.data()),
                                save_core::npy_bytes("uint8", {240}, values.data())},
        [](const Bytes& bytes) { (void)save_core::parse_npy(bytes, "a"); }});
    found.push_back({"png", mutants::pngs(), read_image_bytes});
    found.push_back({"jpeg", {mutants::jpeg(false), mutants::jpeg(true)}, read_image_bytes});
    found.push_back({"sound", {mutants::wav(16'000, 1, 2, 400), mutants::wav(44'100, 2, 3, 300)},
        read_sound_bytes});
    return found;
}
