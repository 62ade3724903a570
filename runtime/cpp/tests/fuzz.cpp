// libFuzzer on one reader: SAVE_FUZZ=png fuzz CORPUS [options of libFuzzer].
//
// SAVE_FUZZ_SEEDS=DIR writes the valid files of the reader into DIR instead.
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>

#include "error.hpp"
#include "readers.hpp"

namespace {

Reader chosen() {
    const char* name = std::getenv("SAVE_FUZZ");
    for (Reader& reader : readers())
        if (name != nullptr && reader.name == name) return reader;
    std::cerr << "SAVE_FUZZ names no reader\n";
    std::exit(2);
}

const Reader& reader() {
    static const Reader found = chosen();
    return found;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    const char* folder = std::getenv("SAVE_FUZZ_SEEDS");
    if (folder == nullptr) return 0;
    int i = 0;
    for (const save_core::Bytes& seed : reader().seeds) {
        std::ofstream out(std::string(folder) + "/seed-c" + std::to_string(i++), std::ios::binary);
        out.write(reinterpret_cast<const char*>(seed.data()), static_cast<std::streamsize>(seed.size()));
    }
    std::exit(0);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        reader().read(save_core::Bytes(data, data + size));
    } catch (const save_core::Error&) {
        // refused with a text, as it should be
    }
    return 0;
}
