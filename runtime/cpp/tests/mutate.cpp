// Damaged manifests, arrays, pictures and sounds, in process: each is read or refused with a text.
//
//     mutate [COUNT [SEED]]    COUNT inputs of each kind; seeded, so that a failure can be repeated
#include <cstdio>
#include <cstdlib>
#include <random>

#include "check.hpp"
#include "mutants.hpp"
#include "readers.hpp"

using save_core::Bytes;

int main(int argc, char** argv) {
    const int count = argc > 1 ? std::atoi(argv[1]) : 10'000;
    std::mt19937 random(argc > 2 ? static_cast<unsigned>(std::atoi(argv[2])) : 1);
    for (const Reader& reader : readers()) {
        int accepted = 0, refused = 0;
        for (const Bytes& seed : reader.seeds) reader.read(seed);  // throws: the seed itself is bad
        for (int i = 0; i < count; ++i) {
            Bytes bytes = mutants::mutated(reader.seeds[random() % reader.seeds.size()], random);
            if (reader.name == "png" && i % 2 == 0) bytes = mutants::with_right_checksums(bytes);
            try {
                reader.read(bytes);
                ++accepted;
            } catch (const save_core::Error& error) {
                CHECK(error.what()[0] != '\0' && error.status() != SAVE_OK);
                ++refused;
            }  // anything else ends the program: a defect
        }
        std::printf("%-8s %5d read, %5d refused\n", reader.name.c_str(), accepted, refused);
        CHECK(count < 1000 || (refused > 0 && accepted > 0));
    }
    return failures == 0 ? 0 : 1;
}
