// ONNX Runtime's CPU provider through its C interface, set up as runtime/session/ort.py does.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdlib>

#include "error.hpp"
#include "kept.hpp"
#include "npy.hpp"
#include "session.hpp"

namespace save_core {
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

// The interface of the library that is loaded; null when it is older than the header.
const OrtApi* interface() { return OrtGetApiBase()->GetApi(ORT_API_VERSION); }

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

class OnnxRuntimeSession final : public Session {
public:
    OnnxRuntimeSession(const std::string& path, const GraphSpec& spec, const SessionOptions& options)
        : spec_(spec), api_(interface()) {
        if (api_ == nullptr)
            throw Error(SAVE_DETAIL_BACKEND, "onnxruntime is older than its header",
                OrtGetApiBase()->GetVersionString(),
                "1." + std::to_string(ORT_API_VERSION) + " or newer", "install a newer onnxruntime");
        const std::string what = "onnxruntime cannot run " + path;
        OrtEnv* env = nullptr;
        check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "save_runtime", &env), what);
        env_.reset(env);
        OrtSessionOptions* made = nullptr;
        check(api_->CreateSessionOptions(&made), what);
        const Options settings(made);
        check(api_->SetIntraOpNumThreads(made, options.threads), what);
        check(api_->SetInterOpNumThreads(made, 1), what);
        // threads otherwise spin on after a run, which slows whatever the application does next
        check(api_->AddSessionConfigEntry(made, "session.force_spinning_stop", "1"), what);
        // without VNNI two 8-bit products are added in 16 bits, which saturates; as in Python
        check(api_->AddSessionConfigEntry(made, "session.x64quantprecision", "1"), what);
        OrtSession* session = nullptr;
        const Gathered graph(path, options.weights);
        check(api_->CreateSession(env, graph.path().c_str(), made, &session), what);
        session_.reset(session);
        std::size_t n_inputs = 0, n_outputs = 0;
        check(api_->SessionGetInputCount(session, &n_inputs), what);
        check(api_->SessionGetOutputCount(session, &n_outputs), what);
        require(spec_.inputs, n_inputs, api_->SessionGetInputName, api_->SessionGetInputTypeInfo, path);
        require(spec_.outputs, n_outputs, api_->SessionGetOutputName, api_->SessionGetOutputTypeInfo, path);
        OrtMemoryInfo* memory = nullptr;
        check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), what);
        memory_.reset(memory);
    }

    void run(const std::vector<const void*>& inputs, float* output) override {
        std::vector<const char*> names;
        std::vector<Value> owned;
        std::vector<const OrtValue*> values;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            names.push_back(spec_.inputs[i].name.c_str());
            // ONNX Runtime does not write to inputs; its interface has no const
            owned.push_back(tensor(spec_.inputs[i], const_cast<void*>(inputs[i])));
            values.push_back(owned.back().get());
        }
        const char* const name = spec_.outputs[0].name.c_str();
        const Value result = tensor(spec_.outputs[0], output);
        OrtValue* place = result.get();
        check(api_->Run(session_.get(), nullptr, names.data(), values.data(), values.size(), &name, 1,
                  &place),
            "onnxruntime failed");
    }

    const char* backend() const override { return "onnxruntime"; }

private:
    using GetName = OrtStatus* (*)(const OrtSession*, std::size_t, OrtAllocator*, char**);
    using GetType = OrtStatus* (*)(const OrtSession*, std::size_t, OrtTypeInfo**);

    // The graph's inputs, or outputs, are those of the manifest; sides that it leaves open fit any: ONNX
    // Runtime itself refuses a result that does not fit the memory it is given.
    void require(const std::vector<TensorSpec>& specs, std::size_t n, GetName name_of, GetType type_of,
        const std::string& path) const {
        bool same = n == specs.size();
        for (std::size_t i = 0; same && i < n; ++i) {
            OrtAllocator* allocator = nullptr;
            check(api_->GetAllocatorWithDefaultOptions(&allocator), "onnxruntime failed");
            char* text = nullptr;
            check(name_of(session_.get(), i, allocator, &text), "onnxruntime failed");
            const std::string name = text;
            check(api_->AllocatorFree(allocator, text), "onnxruntime failed");
            OrtTypeInfo* made = nullptr;
            check(type_of(session_.get(), i, &made), "onnxruntime failed");
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

    bool fits(const TensorSpec& spec, const OrtTypeInfo* type) const {
        const OrtTensorTypeAndShapeInfo* tensor = nullptr;  // null for what is no tensor
        check(api_->CastTypeInfoToTensorInfo(type, &tensor), "onnxruntime failed");
        if (tensor == nullptr) return false;
        ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        check(api_->GetTensorElementType(tensor, &element), "onnxruntime failed");
        std::size_t n = 0;
        check(api_->GetDimensionsCount(tensor, &n), "onnxruntime failed");
        std::vector<std::int64_t> sides(n);
        check(api_->GetDimensions(tensor, sides.data(), n), "onnxruntime failed");
        bool same = element == element_of(spec) && n == spec.shape.size();
        for (std::size_t i = 0; same && i < n; ++i) same = sides[i] < 0 || sides[i] == spec.shape[i];
        return same;
    }

    Value tensor(const TensorSpec& spec, void* data) const {
        const auto type = element_of(spec);
        OrtValue* value = nullptr;
        check(api_->CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes_of(spec),
                  spec.shape.data(), spec.shape.size(), type, &value),
            "onnxruntime failed");
        return Value(value);
    }

    GraphSpec spec_;
    const OrtApi* api_;
    Env env_;
    Loaded session_;
    Memory memory_;
};

}  // namespace

std::unique_ptr<Session> open_onnxruntime(
    const std::string& path, const GraphSpec& spec, const SessionOptions& options) {
    return std::make_unique<OnnxRuntimeSession>(path, spec, options);
}

}  // namespace save_core
