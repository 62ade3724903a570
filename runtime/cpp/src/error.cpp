#include "error.hpp"

#include <cstdint>
#include <cstdio>

namespace save_core {
namespace {

// Bytes of the UTF-8 character that starts at `i`, and its code point; 1 byte and -1 for none.
std::size_t character_at(const std::string& text, std::size_t i, std::int32_t* point) {
    const auto byte = [&](std::size_t k) { return static_cast<unsigned char>(text[k]); };
    const unsigned char first = byte(i);
    *point = first < 0x80 ? first : -1;
    const std::size_t n = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 1;
    if (n == 1 || first > 0xf4 || i + n > text.size()) return 1;
    std::int32_t found = first & (0xff >> (n + 1));
    for (std::size_t k = 1; k < n; ++k) {
        if ((byte(i + k) & 0xc0) != 0x80) return 1;
        found = found << 6 | (byte(i + k) & 0x3f);
    }
    const std::int32_t lowest = n == 2 ? 0x80 : n == 3 ? 0x800 : 0x10000;
    if (found < lowest || found > 0x10ffff || (found >= 0xd800 && found < 0xe000)) return 1;
    *point = found;
    return n;
}

// Controls, line separators and marks that turn the direction of text; as in save_deploy/terminal.py.
bool is_control(std::int32_t point) {
    if (point == '\t' || point == '\n') return false;
    return point < 0x20 || (point >= 0x7f && point < 0xa0) || (point >= 0x2028 && point <= 0x202e) ||
           (point >= 0x2066 && point <= 0x2069);
}

}  // namespace

std::string visible(const std::string& text) {
    std::string shown;
    for (std::size_t i = 0; i < text.size();) {
        std::int32_t point = 0;
        const std::size_t n = character_at(text, i, &point);
        const int byte = static_cast<unsigned char>(text[i]);
        if (!is_control(point)) {
            shown.append(text, i, n);
        } else {
            char escape[8];
            const bool wide = point >= 0x100;
            std::snprintf(escape, sizeof escape, wide ? "\\u%04x" : "\\x%02x",
                static_cast<unsigned>(point < 0 ? byte : point));
            shown += escape;
        }
        i += n;
    }
    return shown;
}

Error::Error(save_detail detail, const std::string& what, const std::string& got,
    const std::string& expected, const std::string& next)
    : detail_(detail), text_(what) {
    if (!got.empty()) text_ += "\n  got:      " + got;
    if (!expected.empty()) text_ += "\n  expected: " + expected;
    if (!next.empty()) text_ += "\n  next:     " + next;
    text_ = visible(text_);
}

save_status Error::status() const {
    switch (detail_) {
        case SAVE_DETAIL_PARITY: return SAVE_PARITY;
        case SAVE_DETAIL_BACKEND:
        case SAVE_DETAIL_DEVICE:
        case SAVE_DETAIL_ENGINE: return SAVE_UNAVAILABLE;
        default: return SAVE_INPUT;
    }
}

std::string printable(const std::string& text, std::size_t limit) {
    std::string shown = text.substr(0, limit);
    for (std::size_t i = 0; i < shown.size(); ++i) {
        const auto c = static_cast<unsigned char>(shown[i]);
        const auto next = i + 1 < shown.size() ? static_cast<unsigned char>(shown[i + 1]) : 0U;
        if (c < 0x20 || c == 0x7f) shown[i] = ' ';
        if (c == 0xc2 && next >= 0x80 && next <= 0x9f) shown[i] = shown[i + 1] = ' ';  // as UTF-8
    }
    return text.size() > limit ? shown + "..." : shown;
}

std::string last_line(const std::string& text) {
    const std::size_t end = text.find_last_not_of("\r\n ");
    if (end == std::string::npos) return "";
    const std::size_t newline = text.rfind('\n', end);
    const std::size_t start = newline == std::string::npos ? 0 : newline + 1;
    return text.substr(start, end - start + 1);
}

}  // namespace save_core
