#include "preflight.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "error.hpp"

namespace save_core {
namespace {

constexpr std::size_t kNotedBytes = 32;
constexpr const char* kCopyAgain = "copy the bundle again, or build the engine again";

std::string build_command(const EngineEntry& entry, const std::string& options) {
    return "build the engine again on this machine, for " + entry.library + options;
}

std::string hex(const Bytes& bytes, std::size_t n) {
    std::string found;
    for (std::size_t i = 0; i < std::min(n, bytes.size()); ++i)
        for (const int shift : {4, 0}) found += "0123456789abcdef"[bytes[i] >> shift & 15];
    return found;
}

std::uint64_t little_endian(const Bytes& bytes, std::size_t at, std::size_t n) {
    std::uint64_t value = 0;
    for (std::size_t i = n; i-- > 0;) value = value << 8 | bytes[at + i];
    return value;
}

[[noreturn]] void altered(const EngineEntry& entry, const std::string& got, const std::string& want) {
    throw Error(SAVE_DETAIL_BUNDLE, "engine file is not the one that was built",
        entry.file + ": " + got, want, kCopyAgain);
}

std::string joined_texts(const std::vector<std::string>& texts) {
    std::string all;
    for (const std::string& text : texts) all += (all.empty() ? "" : ", ") + text;
    return all;
}

}  // namespace

std::string this_os() {
#if defined(__linux__) && defined(__x86_64__)
    return "linux-x86_64";
#elif defined(__linux__) && defined(__aarch64__)
    return "linux-aarch64";
#else
    return "";
#endif
}

void check_header(const EngineEntry& entry, const Bytes& start, std::uint64_t size) {
    if (start.size() < kNotedBytes) altered(entry, std::to_string(size) + " bytes", "an engine");
    if (hex(start, kNotedBytes) != entry.header)
        altered(entry, "begins " + hex(start, 8), "a file that begins " + entry.header.substr(0, 16));
    if (entry.library != "tensorrt_rtx") return;
    // observed, not documented: magic at 0 and 28, size at 16, version bytes at 24
    if (std::memcmp(start.data(), "vtrt", 4) != 0 || std::memcmp(&start[28], "vtrt", 4) != 0)
        altered(entry, "no engine of TensorRT-RTX", "magic number vtrt");
    const std::uint64_t noted = little_endian(start, 16, 8);
    if (noted != size)
        altered(entry, std::to_string(size) + " bytes", std::to_string(noted) + " bytes");
    std::string version = std::to_string(start[24]);
    for (std::size_t i = 25; i < 28; ++i) version += "." + std::to_string(start[i]);
    if (version != entry.library_version)
        altered(entry, "built with version " + version, "version " + entry.library_version);
}

void check_headers(const Manifest& manifest, const std::string& folder) {
    for (const EngineEntry& entry : manifest.engines) {
        const std::string path = joined(folder, entry.file);
        check_header(entry, read_file(path, SAVE_DETAIL_BUNDLE, 64), file_size(path));
    }
}

const EngineEntry& engine_for(const Manifest& manifest, const std::string& library) {
    for (const EngineEntry& entry : manifest.engines)
        if (entry.library == library) return entry;
    std::string got;
    for (const EngineEntry& entry : manifest.engines)
        got += (got.empty() ? "" : ", ") + entry.file + " for " + entry.library;
    throw Error(SAVE_DETAIL_ENGINE, "bundle without an engine for " + library,
        got.empty() ? "no engine" : printable(got), "an engine for " + library,
        "build one from this bundle, or use a CPU backend");
}

void check_library(const EngineEntry& entry, const std::string& version, const std::string& os) {
    if (entry.os != os)
        throw Error(SAVE_DETAIL_ENGINE, "engine was built for another system", printable(entry.os),
            os, build_command(entry, ""));
    const bool same_major = entry.library_version.substr(0, entry.library_version.find('.')) ==
                            version.substr(0, version.find('.'));
    if (entry.library_version != version && !(entry.version_compatible && same_major))
        throw Error(SAVE_DETAIL_ENGINE, "engine was built with another version of " + entry.library,
            printable(entry.library_version), version,
            build_command(entry, " " + version) + ", or install " + printable(entry.library_version));
}

void check_target(const EngineEntry& entry, int major, int minor) {
    const std::string here = "SM" + std::to_string(major) + std::to_string(minor);
    for (const std::string& target : entry.targets) {
        if (target == here) return;
        const bool number = target.size() >= 4 && target.compare(0, 2, "SM") == 0 &&
                            target.find_first_not_of("0123456789", 2) == std::string::npos;
        const int built = number ? std::atoi(target.substr(2, 4).c_str()) : 0;
        if (entry.hardware_compatibility == "ampere_plus" && built >= 80 && major >= 8) return;
    }
    throw Error(SAVE_DETAIL_ENGINE, "engine was built for another GPU",
        printable(joined_texts(entry.targets)) + " (" + printable(entry.hardware_compatibility) + ")",
        here, build_command(entry, ", target " + here));
}

}  // namespace save_core
