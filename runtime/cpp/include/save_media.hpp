// save_media.hpp: save_media.h for C++17. Files -> what save::Runtime takes, and masks into files.
//
//     const save::Picture picture("frame.png");
//     const save::Recording sound("sound.wav");
//     const auto mask = runtime.mask(picture, runtime.embed_at(sound, 0.0));
//     save::write_mask("mask.png", mask, picture.width(), picture.height());
#pragma once

#include "save_media.h"
#include "save_runtime.hpp"

namespace save {

inline void check_media(int status) {
    if (status != SAVE_OK) throw Error(status, save_media_last_detail(), save_media_last_error());
}

// A PNG or JPEG file; passes for a Frame as long as it lives.
class Picture {
public:
    explicit Picture(const std::string& path) { check_media(save_read_picture(path.c_str(), &read_)); }
    ~Picture() { save_free_picture(&read_); }
    Picture(const Picture&) = delete;
    Picture& operator=(const Picture&) = delete;

    int width() const { return read_.frame.width; }
    int height() const { return read_.frame.height; }
    operator Frame() const {  // NOLINT: meant to be implicit
        const std::size_t pixels =
            static_cast<std::size_t>(width()) * static_cast<std::size_t>(height());
        return {{read_.frame.rgb, 3 * pixels}, width(), height()};
    }

private:
    save_picture read_{};
};

// A wav, flac or ogg file, mixed to one channel; passes for a Sound as long as it lives.
class Recording {
public:
    // At least `seconds` from its start; 0: all of it.
    explicit Recording(const std::string& path, double seconds = 0.0) {
        check_media(save_read_sound(path.c_str(), seconds, &read_));
    }
    ~Recording() { save_free_recording(&read_); }
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    double seconds() const {
        return static_cast<double>(read_.sound.n_frames) / read_.sound.rate_hz;
    }
    operator Sound() const {  // NOLINT: meant to be implicit
        return {{read_.sound.samples, read_.sound.n_frames}, read_.sound.rate_hz};
    }

private:
    save_recording read_{};
};

// mask (height, width), 255 = sounding -> an 8-bit gray PNG.
inline void write_mask(const std::string& path, View<std::uint8_t> mask, int width, int height) {
    const bool fits = width > 0 && height > 0 &&
                      mask.size() == static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
    if (!fits)
        throw Error(SAVE_INPUT, SAVE_DETAIL_ARGUMENT, "mask whose pixels do not fit its size");
    check_media(save_write_mask(path.c_str(), mask.data(), width, height));
}

}  // namespace save
