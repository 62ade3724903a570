// An engine of TensorRT or TensorRT-RTX on one CUDA device. Compiled against the public headers;
// run up to the missing GPU only: reading a GPU and everything of the session was not seen on one.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <mutex>
#include <ostream>

#include "engine_check.hpp"
#include "error.hpp"
#include "files.hpp"
#include "kept.hpp"
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

// The caller's own CUDA device comes back when a call of ours is over.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "CUDA device cannot be used");
        check(cudaSetDevice(device), "CUDA device cannot be used");
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() { cudaSetDevice(before_); }

private:
    int before_ = 0;
};

Gpu read_gpu(int device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "CUDA device cannot be used");
    return {properties.name, properties.major, properties.minor};
}

// The one logger of the process, as TensorRT wants it, and never destroyed: the library may log while
// the program ends. Keeps the last error for our own text; nothing is written to the console.
class Logger final : public nvinfer1::ILogger {
public:
    static Logger& instance() {
        static Logger& logger = *new Logger;
        return logger;
    }
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR || message == nullptr) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        std::strncpy(last_, message, sizeof last_ - 1);
    }
    void clear() {
        const std::lock_guard<std::mutex> lock(mutex_);
        last_[0] = '\0';
    }
    std::string last() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_[0] == '\0' ? "no message" : last_;
    }

private:
    Logger() = default;
    std::mutex mutex_;
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

    // What happens in a stream, and may be captured: between the pinned memory and the device.
    void send(cudaStream_t stream) const {
        check(cudaMemcpyAsync(device_, host_, size_, cudaMemcpyHostToDevice, stream), "copy failed");
    }
    void fetch(cudaStream_t stream) const {
        check(cudaMemcpyAsync(host_, device_, size_, cudaMemcpyDeviceToHost, stream), "copy failed");
    }
    void take(const void* data) const { std::memcpy(host_, data, size_); }
    void give(void* data) const { std::memcpy(data, host_, size_); }

private:
    std::size_t size_;
    void* device_ = nullptr;
    void* host_ = nullptr;
};

class Stream {
public:
    // independent of the legacy stream: a capture disturbs no other library
    Stream() {
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "CUDA stream cannot be made");
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { cudaStreamDestroy(stream_); }
    cudaStream_t get() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

// Copies and kernels of one call, recorded once and launched as one. Empty where a call cannot be
// recorded, which costs speed alone.
class Graph {
public:
    Graph() = default;
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    ~Graph() {
        if (ready_ != nullptr) cudaGraphExecDestroy(ready_);
    }
    bool ready() const { return ready_ != nullptr; }
    void launch(cudaStream_t stream) const {
        check(cudaGraphLaunch(ready_, stream), "the engine failed on the GPU");
    }
    // Other threads may call CUDA meanwhile. call(): queues into the stream, true when all was queued.
    template <class F>
    void capture(cudaStream_t stream, F&& call) {
        if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return;
        bool queued = false;
        try {
            queued = call();
        } catch (const Error&) {  // a copy that cannot be captured
        }
        cudaGraph_t graph = nullptr;
        const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
        if (ended != cudaSuccess || !queued ||
            cudaGraphInstantiateWithFlags(&ready_, graph, 0) != cudaSuccess)
            ready_ = nullptr;
        if (graph != nullptr) cudaGraphDestroy(graph);
        cudaGetLastError();  // a failed capture is no failed call
    }

private:
    cudaGraphExec_t ready_ = nullptr;
};

#if defined(TRT_MAJOR_RTX)
// TensorRT-RTX compiles kernels on the GPU at the first run and captures its own CUDA graph. What it
// compiled is kept beside the cache of this very engine; as runtime/session/tensorrt_worker.py.
class RuntimeConfig {
public:
    // keeps: as in SessionOptions.
    RuntimeConfig(nvinfer1::ICudaEngine& engine, const std::string& cache_dir, bool keeps)
        : keeps_(keeps) {
        config_.reset(engine.createRuntimeConfig());
        if (!config_) return;
        config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE);
        if (cache_dir.empty()) return;
        cache_.reset(config_->createRuntimeCache());
        if (!cache_) return;
        path_ = joined(cache_dir, "runtime-c.cache");
        if (const auto before = read_kept(path_))
            cache_->deserialize(before->file.data(), before->size);
        config_->setRuntimeCache(*cache_);
    }
    nvinfer1::IExecutionContext* new_context(nvinfer1::ICudaEngine& engine) const {
        return config_ ? engine.createExecutionContext(config_.get()) : engine.createExecutionContext();
    }
    // After the first run: what was compiled is kept even if the process is killed later.
    void save() {
        if (!cache_ || !keeps_) return;
        const std::unique_ptr<nvinfer1::IHostMemory> data(cache_->serialize());
        if (!data || data->size() == saved_) return;
        keep(path_, [&](std::ostream& stream) {
            const auto size = static_cast<std::streamsize>(data->size());
            stream.write(static_cast<const char*>(data->data()), size);
        });
        saved_ = data->size();
    }

private:
    std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
    std::string path_;
    bool keeps_ = false;
    std::size_t saved_ = 0;
};
constexpr bool kCapturesItself = true;
#else
class RuntimeConfig {
public:
    RuntimeConfig(nvinfer1::ICudaEngine&, const std::string&, bool) {}
    nvinfer1::IExecutionContext* new_context(nvinfer1::ICudaEngine& engine) const {
        return engine.createExecutionContext();
    }
    void save() {}
};
constexpr bool kCapturesItself = false;
#endif

class TensorRtSession final : public Session {
public:
    TensorRtSession(const std::string& path, const GraphSpec& spec, const EngineEntry& entry,
        const SessionOptions& options)
        : spec_(spec), device_(options.device) {
        const OnDevice on(device_);
        const Bytes plan = read_file(path, SAVE_DETAIL_BUNDLE);
        Logger::instance().clear();
        runtime_.reset(nvinfer1::createInferRuntime(Logger::instance()));
        // such an engine carries the code of the library that built it; choose_engine lets none run whose
        // source is not trusted
        if (runtime_ && entry.version_compatible) runtime_->setEngineHostCodeAllowed(true);
        if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (engine_) config_ = std::make_unique<RuntimeConfig>(*engine_, options.cache_dir, options.keeps);
        if (engine_) context_.reset(config_->new_context(*engine_));
        if (!context_) refuse("engine cannot be loaded");
        if (engine_->getNbIOTensors() != static_cast<int>(spec_.inputs.size() + spec_.outputs.size()))
            throw Error(SAVE_DETAIL_BUNDLE, "engine does not fit its manifest",
                std::to_string(engine_->getNbIOTensors()) + " inputs and outputs",
                std::to_string(spec_.inputs.size() + spec_.outputs.size()), "build the engine again");
        stream_ = std::make_unique<Stream>();
        for (const TensorSpec& tensor : spec_.inputs) bind(tensor);
        bind(spec_.outputs[0]);
    }

    ~TensorRtSession() override {
        // freed where it was made; a device that is lost by now must not throw here
        int before = 0;
        const bool known = cudaGetDevice(&before) == cudaSuccess;
        cudaSetDevice(device_);
        graph_.reset();
        buffers_.clear();
        stream_.reset();
        context_.reset();
        config_.reset();
        engine_.reset();
        runtime_.reset();
        if (known) cudaSetDevice(before);
    }

    void run(const std::vector<const void*>& inputs, float* output) override {
        const OnDevice on(device_);  // CUDA's choice of a device is per thread
        for (std::size_t i = 0; i < inputs.size(); ++i) buffers_[i]->take(inputs[i]);
        if (graph_ && graph_->ready()) {
            graph_->launch(stream_->get());
        } else if (!queue()) {
            refuse("engine cannot be run");
        }
        check(cudaStreamSynchronize(stream_->get()), "the engine failed on the GPU");
        buffers_.back()->give(output);
        if (graph_) return;
        // the first run has allocated and compiled; what comes after replays a record, where there is one
        graph_ = std::make_unique<Graph>();
        if (!kCapturesItself) graph_->capture(stream_->get(), [this] { return queue(); });
        config_->save();
    }

    const char* backend() const override { return SAVE_TENSORRT_NAME; }

private:
    // One call's copies and kernels in the stream.
    bool queue() const {
        for (std::size_t i = 0; i + 1 < buffers_.size(); ++i) buffers_[i]->send(stream_->get());
        if (!context_->enqueueV3(stream_->get())) return false;
        buffers_.back()->fetch(stream_->get());
        return true;
    }

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
        throw Error(SAVE_DETAIL_ENGINE, what, Logger::instance().last(), "an engine for this GPU",
            std::string("build the engine again on this machine, for ") + SAVE_TENSORRT_NAME);
    }

    GraphSpec spec_;
    int device_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<RuntimeConfig> config_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::unique_ptr<Stream> stream_;
    std::unique_ptr<Graph> graph_;  // after the first run
    std::vector<std::unique_ptr<Buffer>> buffers_;  // inputs, then the output
};

}  // namespace

Machine probe_machine(int device) {
    Machine machine;
    machine.os = this_os();
    machine.libraries[SAVE_TENSORRT_NAME] = library_version();
    int count = 0;
    // without a driver TensorRT itself only logs and returns null
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0)
        machine.problem = std::string("no CUDA device: ") +
                          (status == cudaSuccess ? "0 devices" : cudaGetErrorString(status));
    else if (device < 0 || device >= count)
        throw Error(SAVE_DETAIL_DEVICE, "no such CUDA device", std::to_string(device),
            "0 to " + std::to_string(count - 1), "set save_params.device");
    else
        machine.gpu = read_gpu(device);
    return machine;
}

std::unique_ptr<Session> open_tensorrt(const std::string& path, const GraphSpec& spec,
    const EngineEntry& entry, const SessionOptions& options) {
    return std::make_unique<TensorRtSession>(path, spec, entry, options);
}

}  // namespace save_core
