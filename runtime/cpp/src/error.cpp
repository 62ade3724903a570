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
    for (char& c : shown)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
    return text.size() > limit ? shown + "..." : shown;
}

}  // namespace save_core
