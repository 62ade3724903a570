#include "conformance.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "compare.hpp"
#include "error.hpp"
#include "files.hpp"
#include "image_file.hpp"
#include "npy.hpp"
#include "save_runtime.hpp"
#include "sha256.hpp"
#include "sound_file.hpp"

namespace save_tools {
namespace {

using save_core::Error;
using save_core::Npy;

constexpr std::uint8_t kBackground = 0, kUndecided = 128;

[[noreturn]] void differs(const save_core::ConformanceCase& item, const char* what,
    const std::string& got, const std::string& expected) {
    throw Error(SAVE_DETAIL_PARITY, std::string(what) + " differs from the conformance pack",
        item.name + ": " + got, expected, "report it with this case's files");
}

std::string shown(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1e", value);
    return text;
}

// Adds the largest difference to `worst`; throws when it is above the tolerance or not finite.
void compare(const save_core::ConformanceCase& item, const char* what, const std::vector<float>& got,
    const float* wanted, double tolerance, double& worst) {
    const double largest = save_core::largest_difference(got.data(), wanted, got.size());
    if (!save_core::is_within(largest, tolerance))
        differs(item, what, shown(largest), "at most " + shown(tolerance));
    worst = std::max(worst, largest);
}

// Every step-th row and column of (side,side).
std::vector<float> sampled(const std::vector<float>& logits, std::size_t side, std::size_t step) {
    std::vector<float> found;
    for (std::size_t y = 0; y < side; y += step)
        for (std::size_t x = 0; x < side; x += step) found.push_back(logits[y * side + x]);
    return found;
}

}  // namespace

Conformed check_conformance(
    save_runtime* runtime, const std::string& folder, const save_core::Manifest& manifest) {
    const save_core::Conformance& pack = *manifest.conformance;
    const std::int64_t n = static_cast<std::int64_t>(pack.cases.size());
    const std::int64_t points = (manifest.res + pack.logits_step - 1) / pack.logits_step;
    const auto read = [&](const std::string& name, std::vector<std::int64_t> shape) {
        Npy array = save_core::read_npy(save_core::joined(folder, name));
        save_core::expect(array, "float32", shape, name);
        return array;
    };
    const Npy waveform = read(pack.waveform, {n, SAVE_WINDOW_SAMPLES});
    const Npy embedding = read(pack.audio_embedding, {n, SAVE_EMBEDDING_SIZE});
    const Npy logits = read(pack.mask_logits, {n, points, points});

    Conformed found;
    std::uint64_t inter = 0, united = 0;
    const std::size_t side = static_cast<std::size_t>(manifest.res);
    for (std::size_t i = 0; i < pack.cases.size(); ++i) {
        const save_core::ConformanceCase& item = pack.cases[i];
        const Image frame = read_image(save_core::joined(folder, item.frame));
        const SoundFile sound = read_sound(save_core::joined(folder, item.sound));
        const save_frame view{frame.pixels.data(), frame.width, frame.height, 0};

        std::vector<std::uint8_t> image(side * side * 3);
        save::check(save_make_image(&view, manifest.res, image.data()));
        const std::string sha256 = save_core::sha256_of(image.data(), image.size());
        if (sha256 != item.image_sha256)
            differs(item, "image tensor", "sha256 " + sha256, item.image_sha256);

        std::vector<float> window(SAVE_WINDOW_SAMPLES), heard(SAVE_EMBEDDING_SIZE);
        const save_sound plain = sound.view();
        save::check(save_make_waveform(&plain, 0, window.data()));
        compare(item, "waveform", window, waveform.f32(i), pack.waveform_tolerance,
            found.waveform_err);
        save::check(save_embed(runtime, &plain, 0, heard.data()));
        const double scale = save_core::scale_of(embedding.f32(i), heard.size());
        compare(item, "audio embedding", heard, embedding.f32(i), pack.embedding_tolerance * scale,
            found.embedding_err);

        std::vector<float> got(side * side);
        save::check(save_infer(runtime, &view, heard.data(), got.data()));
        compare(item, "logits", sampled(got, side, static_cast<std::size_t>(pack.logits_step)),
            logits.f32(i), pack.logits_tolerance.value_or(HUGE_VAL), found.logits_err);

        const Image wanted = read_gray(save_core::joined(folder, item.mask));
        std::vector<std::uint8_t> mask(frame.pixels.size() / 3);
        if (wanted.width != frame.width || wanted.height != frame.height)
            throw Error(SAVE_DETAIL_BUNDLE, "conformance mask of another size than its frame",
                item.mask);
        save::check(save_mask_of_logits(
            got.data(), manifest.res, frame.width, frame.height, mask.data()));
        for (std::size_t k = 0; k < mask.size(); ++k) {
            if (wanted.pixels[k] == kUndecided) continue;
            const bool a = mask[k] != 0, b = wanted.pixels[k] != kBackground;
            inter += a && b;
            united += a || b;
        }
        ++found.n_cases;
    }
    if (united != 0) found.mask_agreement = static_cast<double>(inter) / static_cast<double>(united);
    if (found.mask_agreement < pack.min_agreement)
        throw Error(SAVE_DETAIL_PARITY, "masks differ from the conformance pack",
            "IoU " + std::to_string(found.mask_agreement), std::to_string(pack.min_agreement));
    return found;
}

}  // namespace save_tools
