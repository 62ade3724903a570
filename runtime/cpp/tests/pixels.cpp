// What the picture readers make of files: for comparison with Python's.
//
//     pixels FILE...    a line per file: width and height, the RGB values in FILE.rgb; or why not
#include <cstdio>

#include "error.hpp"
#include "image_file.hpp"

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        const std::string path = argv[i];
        try {
            const save_tools::Image image = save_tools::read_image(path);
            save_core::write_file(path + ".rgb", image.pixels.data(), image.pixels.size());
            std::printf("%d %d\n", image.width, image.height);
        } catch (const save_core::Error& error) {
            std::string text = error.what();
            for (char& c : text)
                if (c == '\n') c = ' ';
            std::printf("%s\n", text.c_str());
        }
    }
    return 0;
}
