// The C interface of the readers (save_media.h).
#include <limits>
#include <memory>

#include "files.hpp"
#include "guard.hpp"
#include "image_file.hpp"
#include "output_file.hpp"
#include "resize.hpp"
#include "save_media.h"
#include "sound_file.hpp"

using save_core::guarded;
using save_core::require;

extern "C" {

const char* save_media_last_error(void) { return save_core::last_text.c_str(); }
int save_media_last_detail(void) { return save_core::last_detail; }

int save_read_picture(const char* path, save_picture* picture) {
    return guarded([&] {
        require(picture, "picture");
        *picture = {};
        require(path, "path");
        auto image = std::make_unique<save_tools::Image>(save_tools::read_image(path));
        picture->frame = {image->pixels.data(), image->width, image->height, 0};
        picture->owner = image.release();
    });
}

int save_read_sound(const char* path, double seconds, save_recording* recording) {
    return guarded([&] {
        require(recording, "recording");
        *recording = {};
        require(path, "path");
        if (!(seconds >= 0))
            throw save_core::Error(SAVE_DETAIL_ARGUMENT, "wrong number of seconds",
                std::to_string(seconds), "0 (all of the file) or more");
        const double wanted = seconds > 0 ? seconds : std::numeric_limits<double>::infinity();
        auto sound = std::make_unique<save_tools::SoundFile>(save_tools::read_sound(path, wanted));
        recording->sound = sound->view();
        recording->owner = sound.release();
    });
}

int save_write_mask(const char* path, const std::uint8_t* mask, int width, int height) {
    return guarded([&] {
        require(path, "path");
        require(mask, "mask");
        save_core::check_size(
            width, height, SAVE_DETAIL_ARGUMENT, "mask of a size that cannot be written");
        const std::string name = save_core::file_name(path);
        save_core::check_mask_name(name);
        const save_core::Bytes png = save_tools::encode_png_gray(mask, width, height);
        save_core::write_file(name, png.data(), png.size());
    });
}

void save_free_picture(save_picture* picture) {
    if (picture == nullptr) return;
    delete static_cast<save_tools::Image*>(picture->owner);
    *picture = {};
}

void save_free_recording(save_recording* recording) {
    if (recording == nullptr) return;
    delete static_cast<save_tools::SoundFile*>(recording->owner);
    *recording = {};
}

}  // extern "C"
