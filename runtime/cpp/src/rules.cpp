#include "rules.hpp"

#include <algorithm>

#include "json.hpp"
#include "rules_data.hpp"

namespace save_core {
namespace {

constexpr int kMaxHeaderBytes = 4096;

std::string from_hex(const std::string& hex) {
    if (hex.size() % 2 != 0 || hex.find_first_not_of("0123456789abcdef") != std::string::npos)
        refuse_json("magic " + hex);
    std::string bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2)
        bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
}

HeaderLayout parse_header(const Json& values) {
    HeaderLayout layout;
    layout.bytes = static_cast<std::size_t>(count(values, "bytes", 32, kMaxHeaderBytes));
    layout.magic = from_hex(text(values, "magic"));
    // every place must lie inside the header, with the longest thing read there: 8 bytes
    const auto place = [&](const Json& value, const char* key) {
        const std::size_t room = layout.bytes - std::max<std::size_t>(8, layout.magic.size());
        return static_cast<std::size_t>(whole(value, key, 0, static_cast<std::int64_t>(room)));
    };
    if (layout.magic.empty() || layout.magic.size() > 16) refuse_json("magic");
    for (const Json& at : list(values, "magic_offsets"))
        layout.magic_at.push_back(place(at, "magic_offsets"));
    if (layout.magic_at.empty()) refuse_json("no magic_offsets");
    layout.file_size_at = place(field(values, "file_size_offset"), "file_size_offset");
    layout.version_at = place(field(values, "version_offset"), "version_offset");
    layout.targets_at = place(field(values, "targets_offset"), "targets_offset");
    for (const auto& [name, bit] : object_of(values, "targets").items())
        layout.targets[name] = static_cast<std::uint32_t>(whole(bit, "targets", 1, UINT32_MAX));
    return layout;
}

LibraryRules parse_library(const Json& values) {
    LibraryRules rules{text(values, "name"), text(values, "install"), text(values, "other_version"),
        text(values, "reason"), text(values, "cuda"), std::nullopt};
    if (!is_absent(values, "header")) rules.header = parse_header(field(values, "header"));
    return rules;
}

Rules parse_checked(const Json& root) {
    (void)whole(field(root, "format_version"), "format_version", kRulesVersion, kRulesVersion);
    Rules rules;
    for (const auto& [name, values] : object_of(root, "libraries").items())
        rules.libraries[name] = parse_library(values);
    const Json& levels = object_of(root, "hardware_compatibility");
    for (const auto& [level, rule] : levels.items())
        rules.hardware_compatibility[level] = text(levels, level.c_str());
    for (const auto& [cuda, systems] : object_of(root, "driver").items()) {
        if (!systems.is_object()) refuse_json("driver is no object");
        for (const auto& [system, oldest] : systems.items())
            rules.driver[cuda][system] = text(systems, system.c_str());
    }
    const Json& memory = object_of(root, "memory");
    rules.memory_factor = number(memory, "factor");
    if (rules.memory_factor < 0 || rules.memory_factor > 1000) refuse_json("memory factor");
    rules.memory_extra_bytes = size_or_none(memory, "extra_bytes").value_or(0);
    return rules;
}

}  // namespace

Rules parse_rules(const std::string& source) {
    try {
        return parse_checked(parse_json(source));
    } catch (const Json::exception& error) {
        refuse_json(error.what());
    }
}

const Rules& own_rules() {
    static const Rules rules = parse_rules(kRules);
    return rules;
}

}  // namespace save_core
