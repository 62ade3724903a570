// One loaded graph of any backend. All graphs of a bundle have one output of floats.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine_check.hpp"
#include "manifest.hpp"

namespace save_core {

class Session {
public:
    Session() = default;
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    virtual ~Session() = default;

    // inputs: one pointer per input of the spec, in its order and shape. output: the whole output.
    // Not for two threads at once.
    virtual void run(const std::vector<const void*>& inputs, float* output) = 0;
    virtual const char* backend() const = 0;
};

struct SessionOptions {
    int threads = 1;
    int device = 0;
    std::string cache_dir;  // of this graph and its weights alone; empty: nothing is kept
    bool keeps = false;     // the files have the hashes that the folder is named by; else it is only read
    std::set<std::string> weights;  // files of the graph, relative to its folder
    bool small_weights = false;  // as in Manifest
};

std::size_t elements(const TensorSpec& spec);
std::size_t bytes_of(const TensorSpec& spec);

// Each throws Error(BACKEND | DEVICE | ENGINE), or Error(BUNDLE) for a graph with other inputs or outputs
// than the spec; `run` throws the latter where shapes that the graph leaves open come out otherwise. A backend that is not compiled in has no function.
std::unique_ptr<Session> open_openvino(
    const std::string& path, const GraphSpec& spec, const SessionOptions& options);
std::unique_ptr<Session> open_onnxruntime(
    const std::string& path, const GraphSpec& spec, const SessionOptions& options);
std::unique_ptr<Session> open_onnxruntime_cuda(
    const std::string& path, const GraphSpec& spec, const SessionOptions& options);
std::unique_ptr<Session> open_tensorrt(const std::string& path, const GraphSpec& spec,
    const EngineEntry& entry, const SessionOptions& options);
// An engine is code: choose_engine lets only those run that were built here or whose source is trusted.
// What this machine offers an engine on this device; throws nothing for a missing GPU. Call
// choose_engine first: open_tensorrt does not check the entry again.
Machine probe_machine(int device);

// Logical processors this process may use, at most as many as there are physical cores: hyper-threads
// slow matrix products down. As runtime/session/base.py counts them.
int default_threads();
// Names of the backends compiled in, the preferred CPU backend first.
const std::vector<std::string>& compiled_backends();

}  // namespace save_core
