#include "onnxruntime.hpp"

#include <algorithm>
#include <cstdlib>

#include "error.hpp"
#include "kept.hpp"
#include "npy.hpp"

namespace save_core::ort {
namespace {

// No telemetry, unless the variable is set already (docs/privacy.md). ONNX Runtime reads it when its
// first environment is made; here it is set while this library is loaded, before there are threads
// that read the environment too.
[[maybe_unused]] const int telemetry_off =
#if defined(_WIN32)
    std::getenv("ORT_DISABLE_TELEMETRY") != nullptr ? 0 : _putenv_s("ORT_DISABLE_TELEMETRY", "1");
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif

using GetName = OrtStatus* (*)(const OrtSession*, std::size_t, OrtAllocator*, char**);
using GetType = OrtStatus* (*)(const OrtSession*, std::size_t, OrtTypeInfo**);

bool fits(const TensorSpec& spec, const OrtTypeInfo* type) {
    const OrtApi* api = interface();
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;  // null for what is no tensor
    check(api->CastTypeInfoToTensorInfo(type, &tensor), "onnxruntime failed");
    if (tensor == nullptr) return false;
    ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    check(api->GetTensorElementType(tensor, &element), "onnxruntime failed");
    std::size_t n = 0;
    check(api->GetDimensionsCount(tensor, &n), "onnxruntime failed");
    std::vector<std::int64_t> sides(n);
    check(api->GetDimensions(tensor, sides.data(), n), "onnxruntime failed");
    bool same = element == element_of(spec) && n == spec.shape.size();
    for (std::size_t i = 0; same && i < n; ++i) same = sides[i] < 0 || sides[i] == spec.shape[i];
    return same;
}

// The graph's inputs, or outputs, are those of the manifest.
void require(const OrtSession* session, const std::vector<TensorSpec>& specs, std::size_t n,
    GetName name_of, GetType type_of, const std::string& path) {
    const OrtApi* api = interface();
    bool same = n == specs.size();
    for (std::size_t i = 0; same && i < n; ++i) {
        OrtAllocator* allocator = nullptr;
        check(api->GetAllocatorWithDefaultOptions(&allocator), "onnxruntime failed");
        char* text = nullptr;
        check(name_of(session, i, allocator, &text), "onnxruntime failed");
        const std::string name = text;
        check(api->AllocatorFree(allocator, text), "onnxruntime failed");
        OrtTypeInfo* made = nullptr;
        check(type_of(session, i, &made), "onnxruntime failed");
        const TypeInfo type(made);
        const auto spec = std::find_if(
            specs.begin(), specs.end(), [&](const TensorSpec& s) { return s.name == name; });
        same = spec != specs.end() && fits(*spec, made);
    }
    if (same) return;
    std::string expected;
    for (const TensorSpec& s : specs) expected += s.name + " " + s.dtype + " " + shown(s.shape) + "; ";
    throw Error(SAVE_DETAIL_BUNDLE, "graph does not fit its manifest", printable(path), expected,
        "copy the bundle again, or export it again");
}

}  // namespace

ONNXTensorElementDataType element_of(const TensorSpec& spec) {
    return spec.dtype == "float32" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                                   : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
}

void check(OrtStatus* status, const std::string& what) {
    if (status == nullptr) return;
    const std::string message = interface()->GetErrorMessage(status);
    interface()->ReleaseStatus(status);
    throw Error(SAVE_DETAIL_BACKEND, what, printable(message, 300), "a working session",
        "use the backend openvino, or the version of onnxruntime in the manifest");
}

void require_interface() {
    if (interface() == nullptr)
        throw Error(SAVE_DETAIL_BACKEND, "onnxruntime is older than its header",
            OrtGetApiBase()->GetVersionString(), "1." + std::to_string(ORT_API_VERSION) + " or newer",
            "install a newer onnxruntime");
}

Env new_env(const std::string& what) {
    OrtEnv* env = nullptr;
    check(interface()->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "save_runtime", &env), what);
    return Env(env);
}

Options new_options(const SessionOptions& settings, const std::string& what) {
    const OrtApi* api = interface();
    OrtSessionOptions* made = nullptr;
    check(api->CreateSessionOptions(&made), what);
    Options options(made);
    check(api->SetIntraOpNumThreads(made, settings.threads), what);
    check(api->SetInterOpNumThreads(made, 1), what);
    // threads otherwise spin on after a run, which slows whatever the application does next
    check(api->AddSessionConfigEntry(made, "session.force_spinning_stop", "1"), what);
    // without VNNI the fast kernels add two 8-bit products in 16 bits, which saturates for large weights
    const char* precise = settings.small_weights ? "0" : "1";
    check(api->AddSessionConfigEntry(made, "session.x64quantprecision", precise), what);
    return options;
}

Loaded open(const OrtEnv* env, const OrtSessionOptions* options, const std::string& path,
    const GraphSpec& spec, const SessionOptions& settings) {
    const OrtApi* api = interface();
    const std::string what = "onnxruntime cannot run " + path;
    OrtSession* made = nullptr;
    const Gathered graph(path, settings.weights);
    check(api->CreateSession(env, graph.path().c_str(), options, &made), what);
    Loaded session(made);
    std::size_t n_inputs = 0, n_outputs = 0;
    check(api->SessionGetInputCount(made, &n_inputs), what);
    check(api->SessionGetOutputCount(made, &n_outputs), what);
    require(made, spec.inputs, n_inputs, api->SessionGetInputName, api->SessionGetInputTypeInfo, path);
    require(made, spec.outputs, n_outputs, api->SessionGetOutputName, api->SessionGetOutputTypeInfo, path);
    return session;
}

}  // namespace save_core::ort
