// JSON from outside, read field by field: anything unexpected is an Error(SAVE_DETAIL_BUNDLE).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace save_core {

using Json = nlohmann::json;

// What nlohmann-json does with a value (dump, compare) recurses: deeper text would end the stack.
constexpr int kMaxJsonDepth = 64;

[[noreturn]] void refuse_json(const std::string& got);
Json parse_json(const std::string& text);

const Json& field(const Json& object, const char* key);
// Null, or not there at all.
bool is_absent(const Json& object, const char* key);
std::string text(const Json& object, const char* key);
std::string text_or_empty(const Json& object, const char* key);  // empty: absent
bool flag(const Json& object, const char* key);
const Json& list(const Json& object, const char* key);
const Json& object_of(const Json& object, const char* key);
double number(const Json& object, const char* key);
std::optional<double> number_or_none(const Json& object, const char* key);
std::int64_t whole(const Json& value, const char* key, std::int64_t low, std::int64_t high);
int count(const Json& object, const char* key, int low, int high);

}  // namespace save_core
