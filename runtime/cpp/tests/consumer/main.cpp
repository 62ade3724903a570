#include <cstdio>
#include <save_runtime.hpp>

int main(int argc, char** argv) {
    try {
        save::Runtime runtime(argc > 1 ? argv[1] : "");
        const std::vector<float> silence(16'000, 0.0F);
        const std::vector<std::uint8_t> black(64 * 48 * 3, 0);
        const auto mask = runtime.mask({black, 64, 48}, runtime.embed({silence, 16'000}));
        std::printf("%zu pixels on %s\n", mask.size(), runtime.info().backend);
        return 0;
    } catch (const save::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return error.status();
    }
}
