// An engine of TensorRT or TensorRT-RTX on one CUDA device. Compiled against the public headers;
// run up to the missing GPU only: nothing below check_device has been seen on one.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "error.hpp"
#include "files.hpp"
#include "preflight.hpp"
#include "session.hpp"

namespace save_core {
namespace {

std::string library_version() {
    return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) +
           "." + std::to_string(getInferLibPatchVersion()) + "." +
           std::to_string(getInferLibBuildVersion());
}

void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw Error(SAVE_DETAIL_DEVICE, what, cudaGetErrorString(status), "no CUDA error",
            "look at nvidia-smi; use a CPU backend meanwhile");
}

// Before anything else: without a driver TensorRT itself only logs and returns null.
cudaDeviceProp check_device(int device) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0)
        throw Error(SAVE_DETAIL_DEVICE, "no CUDA device",
            status == cudaSuccess ? "0 devices" : cudaGetErrorString(status),
            "an NVIDIA GPU with a driver for CUDA " + std::to_string(CUDART_VERSION / 1000),
            "install the driver (nvidia-smi must list the GPU), or use a CPU backend");
    if (device < 0 || device >= count)
        throw Error(SAVE_DETAIL_DEVICE, "no such CUDA device", std::to_string(device),
            "0 to " + std::to_string(count - 1), "set save_params.device");
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "CUDA device cannot be used");
    check(cudaSetDevice(device), "CUDA device cannot be used");
    return properties;
}

// Keeps the last error for our own text; the library writes nothing to the console.
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        std::strncpy(last_, message, sizeof last_ - 1);
    }
    std::string last() const { return last_[0] == '\0' ? "no message" : last_; }

private:
    char last_[300] = {};
};

// A device buffer and the pinned host memory that is copied to and from it.
class Buffer {
public:
    explicit Buffer(std::size_t size) : size_(size) {
        check(cudaMalloc(&device_, size), "GPU memory is too small");
        if (cudaMallocHost(&host_, size) == cudaSuccess) return;
        cudaFree(device_);
        throw Error(SAVE_DETAIL_DEVICE, "pinned memory is too small");
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        cudaFree(device_);
        cudaFreeHost(host_);
    }
    void* device() const { return device_; }

    void send(const void* data, cudaStream_t stream) {
        std::memcpy(host_, data, size_);
        check(cudaMemcpyAsync(device_, host_, size_, cudaMemcpyHostToDevice, stream), "copy failed");
    }
    void fetch(void* data, cudaStream_t stream) {
        check(cudaMemcpyAsync(host_, device_, size_, cudaMemcpyDeviceToHost, stream), "copy failed");
        check(cudaStreamSynchronize(stream), "the engine failed on the GPU");
        std::memcpy(data, host_, size_);
    }

private:
    std::size_t size_;
    void* device_ = nullptr;
    void* host_ = nullptr;
};

class Stream {
public:
    Stream() { check(cudaStreamCreate(&stream_), "CUDA stream cannot be made"); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { cudaStreamDestroy(stream_); }
    cudaStream_t get() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

class TensorRtSession final : public Session {
public:
    TensorRtSession(const std::string& path, const GraphSpec& spec, const EngineEntry& entry,
        const SessionOptions& options)
        : spec_(spec), device_(options.device) {
        const Bytes plan = read_file(path, SAVE_DETAIL_BUNDLE);
        check_header(entry, plan, plan.size());
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (engine_) context_.reset(engine_->createExecutionContext());
        if (!context_) refuse("engine cannot be loaded");
        stream_ = std::make_unique<Stream>();
        for (const TensorSpec& tensor : spec_.inputs) bind(tensor);
        bind(spec_.outputs[0]);
    }

    void run(const std::vector<const void*>& inputs, float* output) override {
        check(cudaSetDevice(device_), "CUDA device cannot be used");  // per thread
        for (std::size_t i = 0; i < inputs.size(); ++i) buffers_[i]->send(inputs[i], stream_->get());
        if (!context_->enqueueV3(stream_->get())) refuse("engine cannot be run");
        buffers_.back()->fetch(output, stream_->get());
    }

    const char* backend() const override { return SAVE_TENSORRT_NAME; }

private:
    void bind(const TensorSpec& spec) {
        const nvinfer1::Dims dims = engine_->getTensorShape(spec.name.c_str());
        bool same = dims.nbDims == static_cast<int>(spec.shape.size());
        for (int i = 0; same && i < dims.nbDims; ++i)
            same = dims.d[i] == spec.shape[static_cast<std::size_t>(i)];
        const auto type = spec.dtype == "float32" ? nvinfer1::DataType::kFLOAT
                                                  : nvinfer1::DataType::kUINT8;
        if (!same || engine_->getTensorDataType(spec.name.c_str()) != type)
            throw Error(SAVE_DETAIL_BUNDLE, "engine does not fit its manifest", spec.name,
                spec.dtype + " as in the manifest", "build the engine again");
        buffers_.push_back(std::make_unique<Buffer>(bytes_of(spec)));
        if (!context_->setTensorAddress(spec.name.c_str(), buffers_.back()->device()))
            refuse("engine cannot be bound");
    }

    [[noreturn]] void refuse(const char* what) const {
        throw Error(SAVE_DETAIL_ENGINE, what, logger_.last(), "an engine for this GPU",
            std::string("build the engine again on this machine, for ") + SAVE_TENSORRT_NAME);
    }

    GraphSpec spec_;
    int device_;
    Logger logger_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::unique_ptr<Stream> stream_;
    std::vector<std::unique_ptr<Buffer>> buffers_;  // inputs, then the output
};

}  // namespace

void check_tensorrt(const EngineEntry& entry, int device) {
    check_library(entry, library_version(), this_os());
    const cudaDeviceProp properties = check_device(device);
    check_target(entry, properties.major, properties.minor);
}

std::unique_ptr<Session> open_tensorrt(const std::string& path, const GraphSpec& spec,
    const EngineEntry& entry, const SessionOptions& options) {
    return std::make_unique<TensorRtSession>(path, spec, entry, options);
}

}  // namespace save_core
