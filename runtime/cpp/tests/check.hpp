// CHECK for plain test programs: says what differs and goes on; the exit status tells at the end.
#pragma once

#include <cstdio>
#include <string>

#include "error.hpp"

inline int failures = 0;

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            ++failures;                                                                  \
        }                                                                                \
    } while (false)

// The call throws save_core::Error of this detail, with `part` in its text.
template <class F>
void check_throws(F&& call, save_detail detail, const std::string& part, int line) {
    try {
        call();
        std::fprintf(stderr, "line %d: nothing was thrown, expected: %s\n", line, part.c_str());
        ++failures;
    } catch (const save_core::Error& error) {
        const std::string text = error.what();
        if (error.detail() == detail && text.find(part) != std::string::npos) return;
        std::fprintf(stderr, "line %d: detail %d, %s\nexpected: detail %d, %s\n", line,
            error.detail(), text.c_str(), detail, part.c_str());
        ++failures;
    }
}

#define CHECK_THROWS(call, detail, part) check_throws([&] { (void)(call); }, detail, part, __LINE__)
