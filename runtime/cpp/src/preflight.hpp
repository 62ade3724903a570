// May this engine run on this machine? Answered from its manifest entry and the start of its file
// before its library reads it, by the rules of runtime/preflight (Python): the same names refuse.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "error.hpp"
#include "files.hpp"
#include "manifest.hpp"
#include "rules.hpp"

namespace save_core {

struct Gpu {
    std::string name;
    int major = 0, minor = 0;  // compute capability
    std::uint64_t total_bytes = 0;
    std::optional<std::uint64_t> free_bytes;  // none: not known
};

struct Machine {
    std::string os;  // this_os()
    std::optional<Gpu> gpu;
    std::string problem;       // why there is no usable one
    std::string driver, cuda;  // its version, the newest CUDA it serves; empty: not known
    std::string cuda_runtime;  // the CUDA this program brings; empty: none
    std::map<std::string, std::string> libraries;     // "tensorrt_rtx" -> "1.7.1.116"
    std::map<std::string, std::string> library_cuda;  // CUDA it was built for, where known
};

// One reason. rule: its name, for programs; the rest as in every error text.
struct Refusal {
    std::string rule, what, got, expected, cure;
};

// "linux-x86_64", or the empty text on a system no engine is built for.
std::string this_os();

// The entry against the machine, and without weights in any case: this runtime refits no engine. These
// three throw Error(BUNDLE) for an entry no rule can read.
std::vector<Refusal> machine_refusals(
    const EngineEntry& entry, const Machine& machine, const Rules& rules);
// The entry against its file in `folder`: size, noted bytes, header and, unless the caller has
// `hashed` it already, sha256. Without a GPU or a library.
std::vector<Refusal> file_refusals(const EngineEntry& entry, const std::string& folder,
    const Manifest& manifest, const Rules& rules, bool hashed);
// Both, and whether it was built from the graph that is in the bundle.
std::vector<Refusal> engine_refusals(const EngineEntry& entry, const std::string& folder,
    const Manifest& manifest, const Machine& machine, bool hashed);

// GPU memory to have free: weights and activations with a margin, and the CUDA context.
std::uint64_t needed_bytes(const EngineEntry& entry, const Rules& rules);

// The first engine of `library` that may run. Throws Error with the reasons of the nearest one.
const EngineEntry& choose_engine(const Manifest& manifest, const std::string& folder,
    const std::string& library, const Machine& machine, bool hashed);

}  // namespace save_core
