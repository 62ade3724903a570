// Every reader of a stranger's file, with small valid files: for mutate.cpp and fuzz.cpp.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "files.hpp"

struct Reader {
    std::string name;
    std::vector<save_core::Bytes> seeds;
    std::function<void(const save_core::Bytes&)> read;  // throws save_core::Error alone
};

std::vector<Reader> readers();
