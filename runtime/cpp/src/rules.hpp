// What the preflight knows beside an engine's manifest entry: runtime/preflight/rules.json, the same
// file Python reads, compiled in.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace save_core {

// Where a library's engine files keep what can be checked without it (observed, not documented).
struct HeaderLayout {
    std::size_t bytes = 0, file_size_at = 0, version_at = 0, targets_at = 0;
    std::string magic;
    std::vector<std::size_t> magic_at;
    std::map<std::string, std::uint32_t> targets;  // "SM86" -> its bit
};

struct LibraryRules {
    std::string name, install, other_version, reason, cuda;
    std::optional<HeaderLayout> header;
};

struct Rules {
    std::map<std::string, LibraryRules> libraries;
    std::map<std::string, std::string> hardware_compatibility;
    std::map<std::string, std::map<std::string, std::string>> driver;  // CUDA major -> system -> oldest
    double memory_factor = 1;
    std::uint64_t memory_extra_bytes = 0;
};

constexpr int kRulesVersion = 1;

// Throws Error(BUNDLE) for anything but such a table.
Rules parse_rules(const std::string& text);
// Those of this library.
const Rules& own_rules();

}  // namespace save_core
