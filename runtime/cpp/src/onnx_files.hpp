// Which files an ONNX graph reads, found in the protobuf itself. As save_deploy/onnx_files.py.
#pragma once

#include <map>
#include <set>
#include <string>

#include "manifest.hpp"

namespace save_core {

// Names of the files that hold weights of an ONNX file, relative to its folder. Throws Error(BUNDLE) for
// one that is not `listed`, for precompiled code in the graph, and for a file that is no ONNX model.
std::set<std::string> weight_files(
    const std::string& path, const std::map<std::string, FileRecord>& listed);

}  // namespace save_core
