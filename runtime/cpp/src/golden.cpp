// The golden self-test: does this bundle give on this machine what the eager model gave?
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "compare.hpp"
#include "error.hpp"
#include "files.hpp"
#include "npy.hpp"
#include "pipeline.hpp"

namespace save_core {
namespace {

std::string shown(const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

}  // namespace

void self_test(Pipeline& pipeline, save_parity& found) {
    const Manifest& manifest = pipeline.manifest();
    const Golden& golden = manifest.golden;
    const std::int64_t n = golden.n, side = manifest.res;
    const auto read = [&](const char* name, const char* dtype, std::vector<std::int64_t> shape) {
        const std::string path = joined(pipeline.folder(), std::string("golden/") + name + ".npy");
        Npy array = read_npy(path);
        expect(array, dtype, shape, path);
        return array;
    };
    const Npy image = read("image", "uint8", {n, side, side, 3});
    const Npy waveform = read("waveform", "float32", {n, SAVE_WINDOW_SAMPLES});
    const Npy embedding = read("audio_embedding", "float32", {n, SAVE_EMBEDDING_SIZE});
    const Npy logits = read("mask_logits", "float32", {n, side, side});

    found = {};
    std::vector<float> heard(SAVE_EMBEDDING_SIZE), got(static_cast<std::size_t>(side * side));
    std::uint64_t inter = 0, united = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
        pipeline.embed(waveform.f32(i), heard.data());
        const double error = largest_difference(heard.data(), embedding.f32(i), heard.size());
        const double allowed = golden.embedding_tolerance * scale_of(embedding.f32(i), heard.size());
        found.embedding_err = std::max(error, found.embedding_err);
        if (!is_within(error, allowed))
            throw Error(SAVE_DETAIL_PARITY, "audio embedding differs from eager",
                shown("%.1e", error) + " on golden sample " + std::to_string(i),
                "at most " + shown("%.1e", allowed));
        const std::uint8_t* pixels = image.u8(i);
        pipeline.run(&pixels, heard.data(), 1, got.data());
        const float* wanted = logits.f32(i);
        const double worst = largest_difference(got.data(), wanted, got.size());
        if (!std::isfinite(worst))
            throw Error(SAVE_DETAIL_PARITY, "the backend produced NaN or infinite logits",
                "golden sample " + std::to_string(i), "finite values", "export with --fp32");
        found.max_abs_err = std::max(found.max_abs_err, worst);
        for (std::size_t k = 0; k < got.size(); ++k) {
            inter += got[k] > 0.0F && wanted[k] > 0.0F;
            united += got[k] > 0.0F || wanted[k] > 0.0F;
        }
        ++found.n_frames;
    }
    found.mask_agreement =
        united == 0 ? 1.0 : static_cast<double>(inter) / static_cast<double>(united);
    const bool close = !golden.max_abs_err || found.max_abs_err <= *golden.max_abs_err;
    if (!close || found.mask_agreement < golden.min_agreement)
        throw Error(SAVE_DETAIL_PARITY, "golden samples are over the parity budget on this machine",
            "mask agreement " + shown("%.5f", found.mask_agreement) + ", max abs logit error " +
                shown("%.1e", found.max_abs_err),
            "agreement >= " + shown("%g", golden.min_agreement) +
                (golden.max_abs_err ? ", error <= " + shown("%g", *golden.max_abs_err) : ""),
            "export again on this machine, or with --fp32");
}

}  // namespace save_core
