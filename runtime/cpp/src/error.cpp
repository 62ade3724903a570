#include "error.hpp"

namespace save_core {

Error::Error(save_detail detail, const std::string& what, const std::string& got,
    const std::string& expected, const std::string& next)
    : detail_(detail), text_(what) {
    if (!got.empty()) text_ += "\n  got:      " + got;
    if (!expected.empty()) text_ += "\n  expected: " + expected;
    if (!next.empty()) text_ += "\n  next:     " + next;
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
