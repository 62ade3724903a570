// save_runtime.hpp: save_runtime.h for C++17, with objects, vectors and exceptions.
//
//     save::Runtime runtime("bundle/");
//     const std::vector<float> heard = runtime.embed_at({samples, 16000}, 0.0);  // once per second
//     const std::vector<std::uint8_t> mask = runtime.mask({rgb, width, height}, heard);
//
// Everything is inline over the C interface; its rules on threads and memory hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "save_runtime.h"

namespace save {

// what(): what | got | expected | next. status(): the exit code a program should end with.
class Error : public std::runtime_error {
public:
    Error(int status, int detail, const char* text)
        : std::runtime_error(text), status_(status), detail_(detail) {}
    int status() const { return status_; }
    int detail() const { return detail_; }

private:
    int status_, detail_;
};

inline void check(int status) {
    if (status != SAVE_OK) throw Error(status, save_last_detail(), save_last_error());
}

// Elements somebody else owns: a pointer and a size, made from a vector where there is one.
template <class T>
class View {
public:
    View(const T* data, std::size_t size) : data_(data), size_(size) {}
    View(const std::vector<T>& values) : data_(values.data()), size_(values.size()) {}  // NOLINT
    const T* data() const { return data_; }
    std::size_t size() const { return size_; }

private:
    const T* data_;
    std::size_t size_;
};

// 8-bit RGB pixels, height * width * 3, rows without gaps.
struct Frame {
    View<std::uint8_t> rgb;
    int width, height;

    save_frame c() const {
        const bool fits = width > 0 && height > 0 &&
                          rgb.size() == 3 * static_cast<std::size_t>(width) *
                                            static_cast<std::size_t>(height);
        if (!fits)
            throw Error(SAVE_INPUT, SAVE_DETAIL_ARGUMENT, "frame whose pixels do not fit its size");
        return {rgb.data(), width, height, 0};
    }
};

// Interleaved samples in [-1,1].
struct Sound {
    View<float> samples;
    int rate_hz;
    int n_channels = 1;

    save_sound c() const {
        const std::size_t channels = n_channels > 0 ? static_cast<std::size_t>(n_channels) : 1;
        if (samples.size() % channels != 0)
            throw Error(
                SAVE_INPUT, SAVE_DETAIL_ARGUMENT, "sound whose samples do not fit its channels");
        return {samples.data(), samples.size() / channels, n_channels, rate_hz};
    }
};

class Runtime {
public:
    explicit Runtime(const std::string& bundle, const save_params& params = save_params_default()) {
        save_runtime* opened = nullptr;
        check(save_open(bundle.c_str(), &params, &opened));
        runtime_.reset(opened);
    }

    save_info info() const {
        save_info found{};
        check(save_describe(runtime_.get(), &found));
        return found;
    }

    // Second `index` of a sound as AVSBench counts them -> SAVE_EMBEDDING_SIZE floats.
    std::vector<float> embed(const Sound& sound, int index = 0) {
        std::vector<float> embedding(SAVE_EMBEDDING_SIZE);
        const save_sound plain = sound.c();
        check(save_embed(runtime_.get(), &plain, index, embedding.data()));
        return embedding;
    }

    // The second from start_s on, silent after the end: what a frame of a video at floor(t) hears.
    std::vector<float> embed_at(const Sound& sound, double start_s) {
        std::vector<float> embedding(SAVE_EMBEDDING_SIZE);
        const save_sound plain = sound.c();
        check(save_embed_at(runtime_.get(), &plain, start_s, embedding.data()));
        return embedding;
    }

    // (res, res) logits, sounding where > 0.
    std::vector<float> infer(const Frame& frame, View<float> embedding) {
        const std::size_t res = static_cast<std::size_t>(info().res);
        std::vector<float> logits(res * res);
        const save_frame plain = frame.c();
        check(save_infer(runtime_.get(), &plain, checked(embedding), logits.data()));
        return logits;
    }

    // (height, width) bytes, 255 = sounding.
    std::vector<std::uint8_t> mask(const Frame& frame, View<float> embedding) {
        const save_frame plain = frame.c();
        std::vector<std::uint8_t> found(frame.rgb.size() / 3);
        check(save_mask(runtime_.get(), &plain, checked(embedding), found.data()));
        return found;
    }

    // Throws Error(SAVE_PARITY) when the golden samples are over their budget.
    save_parity self_test() {
        save_parity found{};
        check(save_self_test(runtime_.get(), &found));
        return found;
    }

    save_runtime* c() const { return runtime_.get(); }

private:
    struct Closer {
        void operator()(save_runtime* runtime) const { save_close(runtime); }
    };

    static const float* checked(View<float> embedding) {
        if (embedding.size() != SAVE_EMBEDDING_SIZE)
            throw Error(SAVE_INPUT, SAVE_DETAIL_ARGUMENT, "embedding of another size than 128");
        return embedding.data();
    }

    std::unique_ptr<save_runtime, Closer> runtime_;
};

inline std::vector<std::uint8_t> make_image(const Frame& frame, int res) {
    const std::size_t side = res > 0 ? static_cast<std::size_t>(res) : 0;
    std::vector<std::uint8_t> image(side * side * 3);
    const save_frame plain = frame.c();
    check(save_make_image(&plain, res, image.data()));
    return image;
}

inline std::vector<float> make_waveform(const Sound& sound, int index = 0) {
    std::vector<float> waveform(SAVE_WINDOW_SAMPLES);
    const save_sound plain = sound.c();
    check(save_make_waveform(&plain, index, waveform.data()));
    return waveform;
}

inline std::vector<float> make_waveform_at(const Sound& sound, double start_s) {
    std::vector<float> waveform(SAVE_WINDOW_SAMPLES);
    const save_sound plain = sound.c();
    check(save_make_waveform_at(&plain, start_s, waveform.data()));
    return waveform;
}

}  // namespace save
