/* The names of TensorRT's C++ interface that runtime/cpp uses, declared by us from its documentation: enough to
   check its source without the library. With TRT_MAJOR_RTX also those of TensorRT-RTX alone. */
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

extern "C" {
int32_t getInferLibMajorVersion() noexcept;
int32_t getInferLibMinorVersion() noexcept;
int32_t getInferLibPatchVersion() noexcept;
int32_t getInferLibBuildVersion() noexcept;
}

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT, kUINT8 };

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

class ILogger {
public:
    enum class Severity : int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
    virtual void log(Severity severity, const char* message) noexcept = 0;
    virtual ~ILogger() = default;
};

class IHostMemory {
public:
    virtual ~IHostMemory() noexcept = default;
    void* data() const noexcept;
    std::size_t size() const noexcept;
};

#if defined(TRT_MAJOR_RTX)
enum class CudaGraphStrategy : int32_t { kDISABLED, kWHOLE_GRAPH_CAPTURE };

class IRuntimeCache {
public:
    virtual ~IRuntimeCache() noexcept = default;
    IHostMemory* serialize() const noexcept;
    bool deserialize(const void* blob, std::size_t size) noexcept;
};
#endif

class IRuntimeConfig {
public:
    virtual ~IRuntimeConfig() noexcept = default;
#if defined(TRT_MAJOR_RTX)
    bool setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept;
    IRuntimeCache* createRuntimeCache() const noexcept;
    bool setRuntimeCache(const IRuntimeCache& cache) noexcept;
#endif
};

class IExecutionContext {
public:
    virtual ~IExecutionContext() noexcept = default;
    bool setTensorAddress(const char* name, void* data) noexcept;
    bool enqueueV3(cudaStream_t stream) noexcept;
};

class ICudaEngine {
public:
    virtual ~ICudaEngine() noexcept = default;
    int32_t getNbIOTensors() const noexcept;
    Dims getTensorShape(const char* name) const noexcept;
    DataType getTensorDataType(const char* name) const noexcept;
    IRuntimeConfig* createRuntimeConfig() noexcept;
    IExecutionContext* createExecutionContext() noexcept;
    IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept;
};

class IRuntime {
public:
    virtual ~IRuntime() noexcept = default;
    void setEngineHostCodeAllowed(bool allowed) noexcept;
    ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1
