// Masks what sounds in a picture, hearing the first second of a sound.
#include <cstdio>
#include <save_media.hpp>

int main(int argc, char** argv) try {
    if (argc != 5) {
        std::fprintf(stderr, "usage: mask BUNDLE PICTURE SOUND MASK.png\n");
        return 1;
    }
    save::Runtime runtime(argv[1]);
    const save::Picture picture(argv[2]);   // PNG or JPEG
    const save::Recording sound(argv[3]);   // wav, flac or ogg
    const auto mask = runtime.mask(picture, runtime.embed_at(sound, 0.0));
    save::write_mask(argv[4], mask, picture.width(), picture.height());
} catch (const save::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.status();
}
