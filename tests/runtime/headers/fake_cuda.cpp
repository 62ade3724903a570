// libcuda.so.1 for tests: device memory is host memory, the context is a number. FAKE_GPUS: how many there are.
#include <cstdlib>
#include <cstring>

extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) {
    const char* told = std::getenv("FAKE_GPUS");
    *count = told == nullptr ? 1 : std::atoi(told);
    return 0;
}
int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return 0;
}
static int depth = 0;
int cuDevicePrimaryCtxRetain(void** context, int) {
    static int one;
    *context = &one;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int) { return depth == 0 ? 0 : 1; }
int cuCtxPushCurrent_v2(void* context) {
    ++depth;
    return context == nullptr ? 201 : 0;
}
int cuCtxPopCurrent_v2(void**) {
    --depth;
    return 0;
}
int cuCtxSynchronize() { return depth == 1 ? 0 : 201; }
int cuMemcpyHtoD_v2(unsigned long long device, const void* host, size_t size) {
    if (depth != 1) return 201;  // no context is current
    std::memcpy(reinterpret_cast<void*>(device), host, size);
    return 0;
}
int cuMemcpyDtoH_v2(void* host, unsigned long long device, size_t size) {
    if (depth != 1) return 201;
    std::memcpy(host, reinterpret_cast<void*>(device), size);
    return 0;
}
}
