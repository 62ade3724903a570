#include <cstdio>
#include <save_runtime.hpp>

int main(int argc, char** argv) try {
    save::Runtime runtime(argc > 1 ? argv[1] : "bundle");
    const std::vector<float> sound(16'000, 0.0F);               // mono, here at 16 kHz
    const std::vector<std::uint8_t> rgb(64 * 48 * 3, 0);        // 8-bit RGB, top row first
    const auto heard = runtime.embed_at({sound, 16'000}, 0.0);  // once per second of sound
    const auto mask = runtime.mask({rgb, 64, 48}, heard);       // once per frame: 255 = sounding
    std::printf("%zu pixels on %s\n", mask.size(), runtime.info().backend);
} catch (const save::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.status();
}
