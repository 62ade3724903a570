// The engine file against its manifest entry, without the library (runtime/preflight/files.py).
#include <algorithm>
#include <set>

#include "preflight.hpp"

namespace save_core {
namespace {

using Found = std::vector<Refusal>;

constexpr std::size_t kNotedBytes = 32;  // of the header in the entry
constexpr std::size_t kVersionNumbers = 4;
constexpr const char* kCopyAgain = "copy the bundle again, or build the engine again";
constexpr const char* kBuildAgain = "build the engine again";

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

bool has_magic(const Bytes& header, const HeaderLayout& layout) {
    if (header.size() < layout.bytes) return false;
    return std::all_of(layout.magic_at.begin(), layout.magic_at.end(), [&](std::size_t at) {
        return std::equal(layout.magic.begin(), layout.magic.end(), header.begin() + static_cast<long>(at),
            [](char a, unsigned char b) { return static_cast<unsigned char>(a) == b; });
    });
}

std::string bytes_text(std::uint64_t n) { return std::to_string(n) + " bytes"; }

// The header's own words, as observed in files of this library (its layout is undocumented).
void check_layout(Found& found, const EngineEntry& entry, const Bytes& header, std::uint64_t size,
    const HeaderLayout& layout) {
    if (!has_magic(header, layout)) {
        found.push_back({"magic", "not an engine file of " + entry.library,
            hex(header, layout.magic.size()) + " at its start, " + bytes_text(header.size()) +
                " of header",
            layout.magic + " and " + bytes_text(layout.bytes) + " of header", kBuildAgain});
        return;
    }
    const std::uint64_t told = little_endian(header, layout.file_size_at, 8);
    if (told != size)
        found.push_back({"header_size", "engine file is cut off or joined", bytes_text(size),
            bytes_text(told), kCopyAgain});
    std::string version;
    for (std::size_t i = 0; i < kVersionNumbers; ++i)
        version += (i == 0 ? "" : ".") + std::to_string(header[layout.version_at + i]);
    if (version != entry.library_version)
        found.push_back({"header_version", "file is of another version than its entry says", version,
            entry.library_version, kBuildAgain});
    const auto mask = static_cast<std::uint32_t>(little_endian(header, layout.targets_at, 4));
    std::set<std::string> inside;
    for (const auto& [name, bit] : layout.targets)
        if ((mask & bit) != 0) inside.insert(name);
    const bool all = std::all_of(entry.targets.begin(), entry.targets.end(),
        [&](const std::string& target) { return inside.count(target) != 0; });
    if (all) return;
    std::string got, wanted;
    for (const std::string& name : inside) got += (got.empty() ? "" : ", ") + name;
    for (const std::string& name : entry.targets) wanted += (wanted.empty() ? "" : ", ") + name;
    found.push_back({"header_targets", "file is for other GPUs than its entry says",
        got.empty() ? "none" : got, wanted, kBuildAgain});
}

}  // namespace

Found file_refusals(const EngineEntry& entry, const std::string& folder, const Manifest& manifest,
    const Rules& rules, bool hashed) {
    const auto known = rules.libraries.find(entry.library);
    if (known == rules.libraries.end())
        throw Error(SAVE_DETAIL_BUNDLE, "manifest entry of an engine cannot be read",
            "library " + printable(entry.library), "a known library", kBuildAgain);
    const std::string path = joined(folder, entry.file);
    const auto record = manifest.files.find(entry.file);
    if (record == manifest.files.end() || !is_file(path))
        return {{"file", "engine file is missing",
            "no " + entry.file + " in " +
                (record == manifest.files.end() ? "the list of files" : folder),
            "it", kCopyAgain}};
    Found found;
    const std::uint64_t size = file_size(path);
    if (size != entry.engine_bytes || size != record->second.size)
        found.push_back({"size", "engine file has another size", bytes_text(size),
            bytes_text(entry.engine_bytes), kCopyAgain});
    const auto& layout = known->second.header;
    const Bytes header = read_file(path, SAVE_DETAIL_BUNDLE, layout ? layout->bytes : kNotedBytes);
    if (hex(header, kNotedBytes) != entry.header)
        found.push_back({"header", "file begins like another engine",
            header.empty() ? "nothing" : hex(header, kNotedBytes), entry.header, kCopyAgain});
    if (layout) check_layout(found, entry, header, size, *layout);
    if (!hashed && sha256_of_file(path) != record->second.sha256)
        found.push_back({"sha256", "engine file was altered", "another sha256 of " + entry.file,
            record->second.sha256.substr(0, 12) + "...", kCopyAgain});
    return found;
}

}  // namespace save_core
