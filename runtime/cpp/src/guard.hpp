// What every function of a C header is wrapped in: exceptions become a status and this thread's text.
#pragma once

#include <new>
#include <string>
#include <utility>

#include "error.hpp"

namespace save_core {

// Hidden, so that every library has its own.
inline thread_local std::string last_text;
inline thread_local int last_detail = SAVE_DETAIL_NONE;

inline int failed(int status, int detail, const char* text) noexcept {
    last_detail = detail;
    try {
        last_text = text;
    } catch (...) {
        last_text.clear();  // no memory for the text: status and detail still tell
    }
    return status;
}

template <class F>
int guarded(F&& call) noexcept {
    try {
        std::forward<F>(call)();
        return SAVE_OK;
    } catch (const Error& error) {
        return failed(error.status(), error.detail(), error.what());
    } catch (const std::bad_alloc&) {
        return failed(SAVE_INPUT, SAVE_DETAIL_INTERNAL, "out of memory");
    } catch (const std::exception& error) {
        return failed(SAVE_INPUT, SAVE_DETAIL_INTERNAL, error.what());
    } catch (...) {
        return failed(SAVE_INPUT, SAVE_DETAIL_INTERNAL, "unknown error");
    }
}

template <class T>
void require(const T* pointer, const char* name) {
    if (pointer == nullptr)
        throw Error(SAVE_DETAIL_ARGUMENT, std::string(name) + " is NULL", "NULL", "a pointer");
}

}  // namespace save_core
