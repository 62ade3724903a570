// The C interface: arguments checked, exceptions turned into a status and this thread's error text.
#include <algorithm>
#include <cstring>
#include <string>

#include "error.hpp"
#include "guard.hpp"
#include "pipeline.hpp"
#include "resize.hpp"
#include "save_runtime.h"
#include "sound.hpp"

struct save_runtime {
    save_core::Pipeline pipeline;
};

namespace {

using save_core::Error;
using save_core::guarded;
using save_core::require;

constexpr int kMaxFrames = 1 << 20;

void require_range(int value, int low, int high, const char* name) {
    if (value < low || value > high)
        throw Error(SAVE_DETAIL_ARGUMENT, std::string("wrong ") + name, std::to_string(value),
            std::to_string(low) + " to " + std::to_string(high));
}

}  // namespace

extern "C" {

const char* save_last_error(void) { return save_core::last_text.c_str(); }
int save_last_detail(void) { return save_core::last_detail; }
const char* save_version(void) { return SAVE_VERSION; }

const char* save_backends(void) {
    static const std::string names = [] {
        std::string text;
        for (const std::string& name : save_core::compiled_backends())
            text += (text.empty() ? "" : " ") + name;
        return text;
    }();
    return names.c_str();
}

save_params save_params_default(void) {
    return {sizeof(save_params), "auto", nullptr, 0, 1, 0, 0, 0.5F};
}

int save_open(const char* bundle, const save_params* params, save_runtime** runtime) {
    return guarded([&] {
        require(runtime, "runtime");
        *runtime = nullptr;
        require(bundle, "bundle");
        save_params known = save_params_default();
        if (params != nullptr) {
            if (params->struct_size == 0)
                throw Error(SAVE_DETAIL_ARGUMENT, "save_params without its size", "struct_size = 0",
                    "a struct from save_params_default()");
            // an older caller knows fewer fields, a newer one more
            std::memcpy(&known, params, std::min(params->struct_size, sizeof known));
        }
        if (!(known.threshold >= 0.0F && known.threshold < 1.0F))
            throw Error(SAVE_DETAIL_ARGUMENT, "wrong threshold", std::to_string(known.threshold),
                "a probability between 0 and 1");
        *runtime = new save_runtime{{bundle, known}};
    });
}

void save_close(save_runtime* runtime) {
    (void)guarded([&] { delete runtime; });
}

int save_describe(const save_runtime* runtime, save_info* info) {
    return guarded([&] {
        require(runtime, "runtime");
        require(info, "info");
        *info = runtime->pipeline.info();
    });
}

int save_embed(save_runtime* runtime, const save_sound* sound, int index, float* embedding) {
    return guarded([&] {
        require(runtime, "runtime");
        require(sound, "sound");
        require(embedding, "embedding");
        std::vector<float> window(SAVE_WINDOW_SAMPLES);
        save_core::second(*sound, index, window.data());
        runtime->pipeline.embed(window.data(), embedding);
    });
}

int save_embed_at(
    save_runtime* runtime, const save_sound* sound, double start_s, float* embedding) {
    return guarded([&] {
        require(runtime, "runtime");
        require(sound, "sound");
        require(embedding, "embedding");
        std::vector<float> window(SAVE_WINDOW_SAMPLES);
        save_core::second_at(*sound, start_s, window.data());
        runtime->pipeline.embed(window.data(), embedding);
    });
}

int save_infer(
    save_runtime* runtime, const save_frame* frame, const float* embedding, float* logits) {
    return save_infer_many(runtime, frame, embedding, 1, logits);
}

int save_infer_many(save_runtime* runtime, const save_frame* frames, const float* embeddings, int n,
    float* logits) {
    return guarded([&] {
        require(runtime, "runtime");
        require(frames, "frame");
        require(embeddings, "embedding");
        require(logits, "logits");
        require_range(n, 1, kMaxFrames, "number of frames");
        runtime->pipeline.infer(frames, embeddings, n, logits);
    });
}

int save_mask(
    save_runtime* runtime, const save_frame* frame, const float* embedding, std::uint8_t* mask) {
    return guarded([&] {
        require(runtime, "runtime");
        require(frame, "frame");
        require(embedding, "embedding");
        require(mask, "mask");
        const int res = runtime->pipeline.manifest().res;
        std::vector<float> logits(static_cast<std::size_t>(res) * static_cast<std::size_t>(res));
        runtime->pipeline.infer(frame, embedding, 1, logits.data());
        save_core::mask_of_logits(logits.data(), res, frame->width, frame->height, mask,
            runtime->pipeline.threshold_logit());
    });
}

int save_mask_of_logits(
    const float* logits, int res, int width, int height, std::uint8_t* mask) {
    return guarded([&] {
        require(logits, "logits");
        require(mask, "mask");
        require_range(res, 1, 8192, "res");
        save_core::check_size(width, height, SAVE_DETAIL_ARGUMENT, "mask of a size that cannot be made");
        save_core::mask_of_logits(logits, res, width, height, mask);
    });
}

int save_self_test(save_runtime* runtime, save_parity* parity) {
    return guarded([&] {
        require(runtime, "runtime");
        save_parity found{};
        try {
            save_core::self_test(runtime->pipeline, found);
        } catch (...) {
            if (parity != nullptr) *parity = found;
            throw;
        }
        if (parity != nullptr) *parity = found;
    });
}

int save_make_image(const save_frame* frame, int res, std::uint8_t* image) {
    return guarded([&] {
        require(frame, "frame");
        require(image, "image");
        require_range(res, 1, 8192, "res");
        save_core::check_frame(*frame);
        save_core::resize_frame(*frame, res, image);
    });
}

int save_make_waveform(const save_sound* sound, int index, float* waveform) {
    return guarded([&] {
        require(sound, "sound");
        require(waveform, "waveform");
        save_core::second(*sound, index, waveform);
    });
}

int save_make_waveform_at(const save_sound* sound, double start_s, float* waveform) {
    return guarded([&] {
        require(sound, "sound");
        require(waveform, "waveform");
        save_core::second_at(*sound, start_s, waveform);
    });
}

}  // extern "C"
