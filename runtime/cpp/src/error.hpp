// Errors as the C header reports them: status, detail, and what | got | expected | next.
#pragma once

#include <exception>
#include <string>

#include "save_runtime.h"

namespace save_core {

class Error : public std::exception {
public:
    Error(save_detail detail, const std::string& what, const std::string& got = "",
        const std::string& expected = "", const std::string& next = "");

    const char* what() const noexcept override { return text_.c_str(); }
    save_detail detail() const { return detail_; }
    save_status status() const;

private:
    save_detail detail_;
    std::string text_;
};

// The text with control characters, and bytes that are no UTF-8, as escapes: \\x1b. Every Error is so.
std::string visible(const std::string& text);

// First `limit` bytes of a text that came from outside, control characters replaced.
std::string printable(const std::string& text, std::size_t limit = 200);

// Last line that says something; a library's first ones may name its source files.
std::string last_line(const std::string& text);

}  // namespace save_core
