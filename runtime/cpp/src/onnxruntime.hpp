// What sessions on ONNX Runtime share: its C interface, its objects, and the check of a graph.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "session.hpp"

namespace save_core::ort {

// The interface of the library that is loaded; null when it is older than the header.
inline const OrtApi* interface() { return OrtGetApiBase()->GetApi(ORT_API_VERSION); }

// An object of ONNX Runtime and the member of OrtApi that releases it.
template <class T, void (*OrtApi::*Release)(T*)>
struct Releaser {
    void operator()(T* object) const { (interface()->*Release)(object); }
};

using Env = std::unique_ptr<OrtEnv, Releaser<OrtEnv, &OrtApi::ReleaseEnv>>;
using Options =
    std::unique_ptr<OrtSessionOptions, Releaser<OrtSessionOptions, &OrtApi::ReleaseSessionOptions>>;
using Loaded = std::unique_ptr<OrtSession, Releaser<OrtSession, &OrtApi::ReleaseSession>>;
using Memory = std::unique_ptr<OrtMemoryInfo, Releaser<OrtMemoryInfo, &OrtApi::ReleaseMemoryInfo>>;
using TypeInfo = std::unique_ptr<OrtTypeInfo, Releaser<OrtTypeInfo, &OrtApi::ReleaseTypeInfo>>;
using Value = std::unique_ptr<OrtValue, Releaser<OrtValue, &OrtApi::ReleaseValue>>;
using Allocator = std::unique_ptr<OrtAllocator, Releaser<OrtAllocator, &OrtApi::ReleaseAllocator>>;
using Binding = std::unique_ptr<OrtIoBinding, Releaser<OrtIoBinding, &OrtApi::ReleaseIoBinding>>;
using CudaSettings = std::unique_ptr<OrtCUDAProviderOptionsV2,
    Releaser<OrtCUDAProviderOptionsV2, &OrtApi::ReleaseCUDAProviderOptions>>;

ONNXTensorElementDataType element_of(const TensorSpec& spec);
// Throws Error(BACKEND) with ONNX Runtime's own words.
void check(OrtStatus* status, const std::string& what);
// Throws Error(BACKEND) where the library that is loaded is older than the header.
void require_interface();
Env new_env(const std::string& what);
// Options of every session of the project, as runtime/session/ort.py sets them.
Options new_options(const SessionOptions& settings, const std::string& what);
// A session whose inputs and outputs are those of the manifest. Throws Error(BUNDLE) for others; sides
// that a graph leaves open fit any: ONNX Runtime itself refuses a result that does not fit its memory.
Loaded open(const OrtEnv* env, const OrtSessionOptions* options, const std::string& path,
    const GraphSpec& spec, const SessionOptions& settings);

}  // namespace save_core::ort
