// May an engine of a bundle run on this machine? Five rules, applied before its library reads it: the
// operating system, the library, its version, the GPU, the hashes. As runtime/engine_check.py.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "error.hpp"
#include "files.hpp"
#include "manifest.hpp"

namespace save_core {

struct Gpu {
    std::string name;
    int major = 0, minor = 0;  // compute capability
};

struct Machine {
    std::string os;  // this_os()
    std::optional<Gpu> gpu;
    std::string problem;                           // why there is no usable one
    std::map<std::string, std::string> libraries;  // "tensorrt_rtx" -> "1.7.1.116"
};

// One reason. rule: its name, for programs; the rest as in every error text.
struct Refusal {
    std::string rule, what, got, expected, cure;
};

// "linux-x86_64", or the empty text on a system no engine is built for.
std::string this_os();

// Every reason why this engine may not run here; none: it may. Engines without weights are refused as
// well: this runtime puts no weights back. hashed: the files were compared with their sha256 already.
// Throws Error(BUNDLE) for an entry that cannot be read.
std::vector<Refusal> engine_refusals(const EngineEntry& entry, const std::string& folder,
    const Manifest& manifest, const Machine& machine, bool hashed);

// The first engine of `library` that may run. trust: engines are code, and without it only those built
// on this machine run. Throws Error with the reasons of the nearest one.
const EngineEntry& choose_engine(const Manifest& manifest, const std::string& folder,
    const std::string& library, const Machine& machine, bool hashed, bool trust);

}  // namespace save_core
