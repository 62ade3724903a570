// ONNX Runtime through its C interface, set up as runtime/session/ort.py and ort_gpu.py do: its CPU
// provider, and its CUDA provider with fixed buffers on the device. The latter was compiled and run up to
// "no CUDA device"; it has never run on a GPU.
#include "cuda_driver.hpp"
#include "error.hpp"
#include "onnxruntime.hpp"
#include "session.hpp"

namespace save_core {
namespace {

using ort::check;

class OnnxRuntimeSession final : public Session {
public:
    OnnxRuntimeSession(const std::string& path, const GraphSpec& spec, const SessionOptions& options)
        : spec_(spec) {
        ort::require_interface();
        const std::string what = "onnxruntime cannot run " + path;
        env_ = ort::new_env(what);
        const ort::Options settings = ort::new_options(options, what);
        // a plan of all tensors as one block would be added to the memory of the first call
        check(api_->DisableMemPattern(settings.get()), what);
        session_ = ort::open(env_.get(), settings.get(), path, spec, options);
        OrtMemoryInfo* memory = nullptr;
        check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), what);
        memory_.reset(memory);
    }

    void run(const std::vector<const void*>& inputs, float* output) override {
        std::vector<const char*> names;
        std::vector<ort::Value> owned;
        std::vector<const OrtValue*> values;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            names.push_back(spec_.inputs[i].name.c_str());
            // ONNX Runtime does not write to inputs; its interface has no const
            owned.push_back(tensor(spec_.inputs[i], const_cast<void*>(inputs[i])));
            values.push_back(owned.back().get());
        }
        const char* const name = spec_.outputs[0].name.c_str();
        const ort::Value result = tensor(spec_.outputs[0], output);
        OrtValue* place = result.get();
        check(api_->Run(session_.get(), nullptr, names.data(), values.data(), values.size(), &name, 1,
                  &place),
            "onnxruntime failed");
    }

    const char* backend() const override { return "onnxruntime"; }

private:
    ort::Value tensor(const TensorSpec& spec, void* data) const {
        OrtValue* value = nullptr;
        check(api_->CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes_of(spec),
                  spec.shape.data(), spec.shape.size(), ort::element_of(spec), &value),
            "onnxruntime failed");
        return ort::Value(value);
    }

    GraphSpec spec_;
    const OrtApi* api_ = ort::interface();
    ort::Env env_;
    ort::Loaded session_;
    ort::Memory memory_;
};

// Inputs and outputs keep one buffer each on the device: what a CUDA graph of the whole run replays on.
class OnnxRuntimeCudaSession final : public Session {
public:
    OnnxRuntimeCudaSession(
        const std::string& path, const GraphSpec& spec, const SessionOptions& options, bool graph)
        : spec_(spec), driver_(options.device) {
        ort::require_interface();
        const std::string what = "onnxruntime cannot run " + path + " on CUDA";
        env_ = ort::new_env(what);
        const ort::Options settings = ort::new_options(options, what);
        // a node that the GPU cannot run is an error, not a node on the CPU
        check(api_->AddSessionConfigEntry(settings.get(), "session.disable_cpu_ep_fallback", "1"), what);
        append_cuda(settings.get(), options.device, graph, what);
        session_ = ort::open(env_.get(), settings.get(), path, spec, options);
        bind(options.device, what);
        if (graph) {  // captured in the first run: whether that works is known before anybody waits
            check(api_->RunWithBinding(session_.get(), nullptr, binding_.get()), what);
        }
    }

    void run(const std::vector<const void*>& inputs, float* output) override {
        for (std::size_t i = 0; i < inputs.size(); ++i)
            driver_.to_device(place_of(inputs_[i].get()), inputs[i], bytes_of(spec_.inputs[i]));
        check(api_->RunWithBinding(session_.get(), nullptr, binding_.get()), "onnxruntime failed on CUDA");
        driver_.to_host(output, place_of(output_.get()), bytes_of(spec_.outputs[0]));
    }

    const char* backend() const override { return "onnxruntime_cuda"; }

private:
    void append_cuda(OrtSessionOptions* options, int device, bool graph, const std::string& what) const {
        OrtCUDAProviderOptionsV2* made = nullptr;
        check(api_->CreateCUDAProviderOptions(&made), what);
        const ort::CudaSettings settings(made);
        const std::string number = std::to_string(device);
        // TF32 would round the inputs of float32 products to 10 bits, which no bundle asks for
        const char* const keys[] = {
            "device_id", "use_tf32", "enable_cuda_graph", "arena_extend_strategy"};
        const char* const values[] = {number.c_str(), "0", graph ? "1" : "0", "kSameAsRequested"};
        check(api_->UpdateCUDAProviderOptions(made, keys, values, std::size(keys)), what);
        check(api_->SessionOptionsAppendExecutionProvider_CUDA_V2(options, made), what);
    }

    void bind(int device, const std::string& what) {
        OrtMemoryInfo* memory = nullptr;
        check(api_->CreateMemoryInfo("Cuda", OrtDeviceAllocator, device, OrtMemTypeDefault, &memory), what);
        memory_.reset(memory);
        OrtAllocator* allocator = nullptr;
        check(api_->CreateAllocator(session_.get(), memory, &allocator), what);
        allocator_.reset(allocator);
        OrtIoBinding* binding = nullptr;
        check(api_->CreateIoBinding(session_.get(), &binding), what);
        binding_.reset(binding);
        for (const TensorSpec& spec : spec_.inputs) {
            inputs_.push_back(tensor(spec, what));
            check(api_->BindInput(binding, spec.name.c_str(), inputs_.back().get()), what);
        }
        output_ = tensor(spec_.outputs[0], what);
        check(api_->BindOutput(binding, spec_.outputs[0].name.c_str(), output_.get()), what);
    }

    ort::Value tensor(const TensorSpec& spec, const std::string& what) const {
        OrtValue* value = nullptr;
        check(api_->CreateTensorAsOrtValue(allocator_.get(), spec.shape.data(), spec.shape.size(),
                  ort::element_of(spec), &value),
            what);
        return ort::Value(value);
    }

    void* place_of(OrtValue* value) const {
        void* place = nullptr;
        check(api_->GetTensorMutableData(value, &place), "onnxruntime failed on CUDA");
        return place;
    }

    GraphSpec spec_;
    CudaDriver driver_;  // throws first: without a GPU nothing else is tried
    const OrtApi* api_ = ort::interface();
    ort::Env env_;
    ort::Loaded session_;
    ort::Memory memory_;
    ort::Allocator allocator_;
    std::vector<ort::Value> inputs_;
    ort::Value output_;
    ort::Binding binding_;
};

}  // namespace

std::unique_ptr<Session> open_onnxruntime(
    const std::string& path, const GraphSpec& spec, const SessionOptions& options) {
    return std::make_unique<OnnxRuntimeSession>(path, spec, options);
}

std::unique_ptr<Session> open_onnxruntime_cuda(
    const std::string& path, const GraphSpec& spec, const SessionOptions& options) {
    try {
        return std::make_unique<OnnxRuntimeCudaSession>(path, spec, options, true);
    } catch (const Error& error) {
        if (error.detail() != SAVE_DETAIL_BACKEND) throw;
    }
    // a graph that cannot be captured costs speed alone; what is wrong otherwise is told here
    return std::make_unique<OnnxRuntimeCudaSession>(path, spec, options, false);
}

}  // namespace save_core
