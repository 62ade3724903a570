// ONNX Runtime's interface for tests, and a program that opens a session on it: y = x + number of this run.
// Every call of interest is printed. FAKE_CAPTURE=fails: a run with a CUDA graph is an error.
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include "error.hpp"
#include "session.hpp"

struct OrtStatus {
    std::string text;
};
struct OrtEnv {};
struct OrtSessionOptions {
    bool graph = false, cuda = false;
};
struct OrtSession {
    bool graph = false;
    int runs = 0;
};
struct OrtMemoryInfo {};
struct OrtTypeInfo {};
struct OrtTensorTypeAndShapeInfo {};
struct OrtAllocator {};
struct OrtCUDAProviderOptionsV2 {
    bool graph = false;
};
struct OrtValue {
    std::vector<float> data;
};
struct OrtIoBinding {
    const OrtValue* in = nullptr;
    const OrtValue* out = nullptr;
};

namespace {

constexpr std::size_t kSides = 2;
constexpr std::int64_t kShape[kSides] = {1, 4};
OrtTypeInfo type_info;
OrtTensorTypeAndShapeInfo tensor_info;
OrtAllocator plain;

OrtStatus* name_of(const char* name, char** out) {
    *out = static_cast<char*>(std::malloc(std::strlen(name) + 1));
    std::strcpy(*out, name);
    return nullptr;
}

OrtApi made() {
    OrtApi api{};
    api.GetErrorMessage = [](const OrtStatus* s) { return s->text.c_str(); };
    api.ReleaseStatus = [](OrtStatus* s) { delete s; };
    api.CreateEnv = [](OrtLoggingLevel, const char*, OrtEnv** out) -> OrtStatus* {
        *out = new OrtEnv;
        return nullptr;
    };
    api.ReleaseEnv = [](OrtEnv* env) { delete env; };
    api.CreateSessionOptions = [](OrtSessionOptions** out) -> OrtStatus* {
        *out = new OrtSessionOptions;
        return nullptr;
    };
    api.ReleaseSessionOptions = [](OrtSessionOptions* options) { delete options; };
    api.SetIntraOpNumThreads = [](OrtSessionOptions*, int) -> OrtStatus* { return nullptr; };
    api.SetInterOpNumThreads = [](OrtSessionOptions*, int) -> OrtStatus* { return nullptr; };
    api.DisableMemPattern = [](OrtSessionOptions*) -> OrtStatus* { return nullptr; };
    api.AddSessionConfigEntry = [](OrtSessionOptions*, const char* key, const char* value) -> OrtStatus* {
        if (std::strstr(key, "fallback") != nullptr) std::printf("%s=%s\n", key, value);
        return nullptr;
    };
    api.CreateSession = [](const OrtEnv*, const char*, const OrtSessionOptions* options,
                            OrtSession** out) -> OrtStatus* {
        if (!options->cuda) return new OrtStatus{"no CUDA provider was appended"};
        *out = new OrtSession{options->graph, 0};
        return nullptr;
    };
    api.ReleaseSession = [](OrtSession* session) {
        std::puts("session released");
        delete session;
    };
    const auto one = [](const OrtSession*, std::size_t* n) -> OrtStatus* {
        *n = 1;
        return nullptr;
    };
    api.SessionGetInputCount = api.SessionGetOutputCount = one;
    api.SessionGetInputName = [](const OrtSession*, std::size_t, OrtAllocator*, char** out) {
        return name_of("x", out);
    };
    api.SessionGetOutputName = [](const OrtSession*, std::size_t, OrtAllocator*, char** out) {
        return name_of("y", out);
    };
    api.SessionGetInputTypeInfo = api.SessionGetOutputTypeInfo =
        [](const OrtSession*, std::size_t, OrtTypeInfo** out) -> OrtStatus* {
        *out = &type_info;
        return nullptr;
    };
    api.GetAllocatorWithDefaultOptions = [](OrtAllocator** out) -> OrtStatus* {
        *out = &plain;
        return nullptr;
    };
    api.AllocatorFree = [](OrtAllocator*, void* memory) -> OrtStatus* {
        std::free(memory);
        return nullptr;
    };
    api.CastTypeInfoToTensorInfo = [](const OrtTypeInfo*,
                                       const OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
        *out = &tensor_info;
        return nullptr;
    };
    api.ReleaseTypeInfo = [](OrtTypeInfo*) {};
    api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo*,
                                   ONNXTensorElementDataType* out) -> OrtStatus* {
        *out = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        return nullptr;
    };
    api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo*, std::size_t* n) -> OrtStatus* {
        *n = kSides;
        return nullptr;
    };
    api.GetDimensions = [](const OrtTensorTypeAndShapeInfo*, std::int64_t* sides,
                            std::size_t n) -> OrtStatus* {
        std::memcpy(sides, kShape, n * sizeof *sides);
        return nullptr;
    };
    api.CreateMemoryInfo = [](const char* name, OrtAllocatorType, int id, OrtMemType,
                               OrtMemoryInfo** out) -> OrtStatus* {
        std::printf("memory %s %d\n", name, id);
        *out = new OrtMemoryInfo;
        return nullptr;
    };
    api.ReleaseMemoryInfo = [](OrtMemoryInfo* memory) { delete memory; };
    api.CreateAllocator = [](const OrtSession*, const OrtMemoryInfo*, OrtAllocator** out) -> OrtStatus* {
        *out = new OrtAllocator;
        return nullptr;
    };
    api.ReleaseAllocator = [](OrtAllocator* allocator) { delete allocator; };
    api.CreateTensorAsOrtValue = [](OrtAllocator*, const std::int64_t*, std::size_t,
                                     ONNXTensorElementDataType, OrtValue** out) -> OrtStatus* {
        *out = new OrtValue{std::vector<float>(4)};
        return nullptr;
    };
    api.GetTensorMutableData = [](OrtValue* value, void** out) -> OrtStatus* {
        *out = value->data.data();
        return nullptr;
    };
    api.ReleaseValue = [](OrtValue* value) { delete value; };
    api.CreateIoBinding = [](OrtSession*, OrtIoBinding** out) -> OrtStatus* {
        *out = new OrtIoBinding;
        return nullptr;
    };
    api.ReleaseIoBinding = [](OrtIoBinding* binding) { delete binding; };
    api.BindInput = [](OrtIoBinding* binding, const char* name, const OrtValue* value) -> OrtStatus* {
        std::printf("bind input %s\n", name);
        binding->in = value;
        return nullptr;
    };
    api.BindOutput = [](OrtIoBinding* binding, const char* name, const OrtValue* value) -> OrtStatus* {
        std::printf("bind output %s\n", name);
        binding->out = value;
        return nullptr;
    };
    api.RunWithBinding = [](OrtSession* session, const OrtRunOptions*,
                             const OrtIoBinding* binding) -> OrtStatus* {
        const char* capture = std::getenv("FAKE_CAPTURE");
        if (session->graph && capture != nullptr) return new OrtStatus{"capture failed"};
        ++session->runs;
        std::printf("run %d\n", session->runs);
        for (std::size_t i = 0; i < 4; ++i)
            const_cast<OrtValue*>(binding->out)->data[i] =
                binding->in->data[i] + static_cast<float>(session->runs);
        return nullptr;
    };
    api.CreateCUDAProviderOptions = [](OrtCUDAProviderOptionsV2** out) -> OrtStatus* {
        *out = new OrtCUDAProviderOptionsV2;
        return nullptr;
    };
    api.UpdateCUDAProviderOptions = [](OrtCUDAProviderOptionsV2* options, const char* const* keys,
                                        const char* const* values, std::size_t n) -> OrtStatus* {
        for (std::size_t i = 0; i < n; ++i) {
            std::printf("%s=%s\n", keys[i], values[i]);
            if (std::string(keys[i]) == "enable_cuda_graph") options->graph = values[i][0] == '1';
        }
        return nullptr;
    };
    api.ReleaseCUDAProviderOptions = [](OrtCUDAProviderOptionsV2* options) { delete options; };
    api.SessionOptionsAppendExecutionProvider_CUDA_V2 =
        [](OrtSessionOptions* options, const OrtCUDAProviderOptionsV2* cuda) -> OrtStatus* {
        options->cuda = true;
        options->graph = cuda->graph;
        return nullptr;
    };
    return api;
}

}  // namespace

const OrtApiBase* OrtGetApiBase(void) {
    static const OrtApi api = made();
    static const OrtApiBase base = {
        [](std::uint32_t) -> const OrtApi* { return &api; }, [] { return "0"; }};
    return &base;
}

// fake_onnxruntime GRAPH.onnx DEVICE: two runs on 1, 2, 3, 4.
int main(int, char** arguments) try {
    const save_core::TensorSpec x{"x", "float32", {1, 4}}, y{"y", "float32", {1, 4}};
    save_core::GraphSpec spec;
    spec.file = arguments[1];
    spec.inputs = {x};
    spec.outputs = {y};
    save_core::SessionOptions options;
    options.device = std::atoi(arguments[2]);
    const auto session = save_core::open_onnxruntime_cuda(arguments[1], spec, options);
    std::printf("opened %s\n", session->backend());
    for (int run = 0; run < 2; ++run) {
        const std::vector<float> given = {1, 2, 3, 4};
        std::vector<float> found(4);
        session->run({given.data()}, found.data());
        std::printf("found %g %g %g %g\n", found[0], found[1], found[2], found[3]);
    }
    return 0;
} catch (const save_core::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.status();
}
