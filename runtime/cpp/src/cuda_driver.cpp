#include "cuda_driver.hpp"

#include <cstdint>
#include <mutex>
#include <string>

#include "error.hpp"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace save_core {
namespace {

using Result = int;                 // CUresult: 0 is success
using Address = unsigned long long;  // CUdeviceptr of 64-bit systems

// A shared library that stays loaded, and the loader's words where it is missing.
class Library {
public:
    explicit Library(const char* name) {
#if defined(_WIN32)
        handle_ = LoadLibraryA(name);
        if (handle_ == nullptr) problem_ = std::string(name) + " cannot be loaded";
#else
        handle_ = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
        if (handle_ == nullptr) {
            const char* told = dlerror();
            problem_ = told == nullptr ? name : told;
        }
#endif
    }
    const std::string& problem() const { return problem_; }

    template <class Function>
    void find(const char* name, Function*& function) {
        if (handle_ == nullptr) return;
#if defined(_WIN32)
        function = reinterpret_cast<Function*>(GetProcAddress(static_cast<HMODULE>(handle_), name));
#else
        function = reinterpret_cast<Function*>(dlsym(handle_, name));
#endif
        if (function == nullptr && problem_.empty()) problem_ = std::string("no ") + name;
    }

private:
    void* handle_ = nullptr;
    std::string problem_;
};

#if defined(_WIN32)
constexpr const char* kLibrary = "nvcuda.dll";
#else
constexpr const char* kLibrary = "libcuda.so.1";
#endif

// The functions of cuda.h that are used, with its parameters.
struct Driver {
    std::string problem;
    Result (*init)(unsigned) = nullptr;
    Result (*count)(int*) = nullptr;
    Result (*get)(int*, int) = nullptr;
    Result (*retain)(void**, int) = nullptr;
    Result (*release)(int) = nullptr;
    Result (*push)(void*) = nullptr;
    Result (*pop)(void**) = nullptr;
    Result (*synchronize)() = nullptr;
    Result (*to_device)(Address, const void*, std::size_t) = nullptr;
    Result (*to_host)(void*, Address, std::size_t) = nullptr;

    Driver() {
        Library library(kLibrary);
        library.find("cuInit", init);
        library.find("cuDeviceGetCount", count);
        library.find("cuDeviceGet", get);
        library.find("cuDevicePrimaryCtxRetain", retain);
        library.find("cuDevicePrimaryCtxRelease_v2", release);
        library.find("cuCtxPushCurrent_v2", push);
        library.find("cuCtxPopCurrent_v2", pop);
        library.find("cuCtxSynchronize", synchronize);
        library.find("cuMemcpyHtoD_v2", to_device);
        library.find("cuMemcpyDtoH_v2", to_host);
        problem = library.problem();
    }
};

const Driver& driver() {
    static const Driver loaded;
    return loaded;
}

[[noreturn]] void no_device(const std::string& why) {
    throw Error(SAVE_DETAIL_DEVICE, "no CUDA device", printable(why, 200),
        std::string("an NVIDIA GPU and its driver (") + kLibrary + ")",
        "install NVIDIA's driver; use a CPU backend meanwhile");
}

void check(Result status, const char* what) {
    if (status != 0)
        throw Error(SAVE_DETAIL_DEVICE, what, "CUDA driver error " + std::to_string(status),
            "no CUDA error", "look at nvidia-smi; use a CPU backend meanwhile");
}

// The device's context is the thread's current one while a call of ours runs, then the caller's is back.
class Current {
public:
    explicit Current(void* context) { check(driver().push(context), "CUDA device cannot be used"); }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    ~Current() {
        void* mine = nullptr;
        driver().pop(&mine);
    }
};

Address address_of(const void* device) {
    return static_cast<Address>(reinterpret_cast<std::uintptr_t>(device));
}

}  // namespace

CudaDriver::CudaDriver(int device) : device_(device) {
    if (!driver().problem.empty()) no_device(driver().problem);
    int count = 0;
    const Result status = driver().init(0) == 0 ? driver().count(&count) : 1;
    if (status != 0 || count == 0) no_device("the driver sees no GPU");
    if (device < 0 || device >= count)
        throw Error(SAVE_DETAIL_DEVICE, "no such CUDA device", std::to_string(device),
            "0 to " + std::to_string(count - 1), "set save_params.device");
    check(driver().get(&device_, device), "CUDA device cannot be used");
    check(driver().retain(&context_, device_), "CUDA device cannot be used");
}

CudaDriver::~CudaDriver() {
    if (context_ != nullptr) driver().release(device_);
}

void CudaDriver::to_device(void* device, const void* host, std::size_t size) const {
    const Current current(context_);
    check(driver().to_device(address_of(device), host, size), "copy to the GPU failed");
    // the copy of pageable memory may still be on its way, and the provider's stream does not wait for it
    check(driver().synchronize(), "copy to the GPU failed");
}

void CudaDriver::to_host(void* host, const void* device, std::size_t size) const {
    const Current current(context_);
    check(driver().to_host(host, address_of(device), size), "the graph failed on the GPU");
}

}  // namespace save_core
