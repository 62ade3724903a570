// Is this engine file for this library, this system and this GPU? Answered before it is loaded.
#pragma once

#include <string>

#include "files.hpp"
#include "manifest.hpp"

namespace save_core {

// "linux-x86_64", or the empty text on a system no engine is built for.
std::string this_os();

// The first bytes of an engine file (64 suffice) against its entry: TensorRT-RTX's magic number,
// size and version, and for either library the bytes noted at export. Throws Error(BUNDLE).
void check_header(const EngineEntry& entry, const Bytes& start, std::uint64_t size);

// Every engine of a bundle whose file can be looked at without a GPU.
void check_headers(const Manifest& manifest, const std::string& folder);

// The entry of `library`. Throws Error(ENGINE) when the bundle has none.
const EngineEntry& engine_for(const Manifest& manifest, const std::string& library);

// Library version as "1.7.1.116" and operating system. Throws Error(ENGINE).
void check_library(const EngineEntry& entry, const std::string& version, const std::string& os);

// Compute capability of the GPU against the targets. Throws Error(ENGINE).
void check_target(const EngineEntry& entry, int major, int minor);

}  // namespace save_core
