// CUDA's driver, loaded when it is asked for: a library without CUDA's headers still sees whether there is
// a GPU, and copies to and from it.
#pragma once

#include <cstddef>

namespace save_core {

// The primary context of one device, which ONNX Runtime uses too. Never run on a GPU.
class CudaDriver {
public:
    // Throws Error(DEVICE) without a driver, without a GPU, or for a number that is none of its GPUs.
    explicit CudaDriver(int device);
    CudaDriver(const CudaDriver&) = delete;
    CudaDriver& operator=(const CudaDriver&) = delete;
    ~CudaDriver();

    // Host memory of any kind; the values are there when the call returns.
    void to_device(void* device, const void* host, std::size_t size) const;
    void to_host(void* host, const void* device, std::size_t size) const;

private:
    int device_ = 0;
    void* context_ = nullptr;
};

}  // namespace save_core
