#include "json.hpp"

#include <cmath>

#include "error.hpp"

namespace save_core {

void refuse_json(const std::string& got) {
    throw Error(SAVE_DETAIL_BUNDLE, "manifest cannot be read", printable(got),
        "a manifest written by save-export", "copy the bundle again, or export it again");
}

Json parse_json(const std::string& text) {
    const auto shallow = [](int depth, Json::parse_event_t, Json&) {
        if (depth > kMaxJsonDepth)
            refuse_json("nested deeper than " + std::to_string(kMaxJsonDepth) + " levels");
        return true;
    };
    // which the parser takes for the end of the text
    if (text.find('\0') != std::string::npos) refuse_json("a NUL byte");
    return Json::parse(text, shallow);
}

const Json& field(const Json& object, const char* key) {
    if (!object.is_object()) refuse_json(std::string("no object around ") + key);
    const auto found = object.find(key);
    if (found == object.end()) refuse_json(std::string("no ") + key);
    return *found;
}

bool is_absent(const Json& object, const char* key) {
    if (!object.is_object()) refuse_json(std::string("no object around ") + key);
    const auto found = object.find(key);
    return found == object.end() || found->is_null();
}

std::string text(const Json& object, const char* key) {
    const Json& value = field(object, key);
    if (!value.is_string()) refuse_json(std::string(key) + " is no text");
    return value.get<std::string>();
}

std::string text_or_empty(const Json& object, const char* key) {
    return is_absent(object, key) ? std::string() : text(object, key);
}

bool flag(const Json& object, const char* key) {
    const Json& value = field(object, key);
    if (!value.is_boolean()) refuse_json(std::string(key) + " is no boolean");
    return value.get<bool>();
}

const Json& list(const Json& object, const char* key) {
    const Json& value = field(object, key);
    if (!value.is_array()) refuse_json(std::string(key) + " is no list");
    return value;
}

const Json& object_of(const Json& object, const char* key) {
    const Json& value = field(object, key);
    if (!value.is_object()) refuse_json(std::string(key) + " is no object");
    return value;
}

std::int64_t whole(const Json& value, const char* key, std::int64_t low, std::int64_t high) {
    if (!value.is_number_integer()) refuse_json(std::string(key) + " is no whole number");
    // an unsigned number above int64 is out of any range
    const bool huge = value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX;
    const std::int64_t found = huge ? INT64_MAX : value.get<std::int64_t>();
    if (huge || found < low || found > high)
        refuse_json(std::string(key) + " = " + value.dump() + ", allowed: " + std::to_string(low) +
                    " to " + std::to_string(high));
    return found;
}

int count(const Json& object, const char* key, int low, int high) {
    return static_cast<int>(whole(field(object, key), key, low, high));
}

double number(const Json& object, const char* key) {
    const Json& value = field(object, key);
    if (!value.is_number() || !std::isfinite(value.get<double>()))
        refuse_json(std::string(key) + " is no number");
    return value.get<double>();
}

std::optional<double> number_or_none(const Json& object, const char* key) {
    if (field(object, key).is_null()) return std::nullopt;
    return number(object, key);
}

}  // namespace save_core
