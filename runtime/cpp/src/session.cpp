#include "session.hpp"

#include <algorithm>
#include <fstream>
#include <set>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace save_core {

std::size_t elements(const TensorSpec& spec) {
    std::size_t n = 1;
    for (const std::int64_t d : spec.shape) n *= static_cast<std::size_t>(d);
    return n;
}

std::size_t bytes_of(const TensorSpec& spec) {
    return elements(spec) * (spec.dtype == "float32" ? 4 : 1);
}

const std::vector<std::string>& compiled_backends() {
    static const std::vector<std::string> names = {
#if defined(SAVE_WITH_OPENVINO)
        "openvino",
#endif
#if defined(SAVE_WITH_ONNXRUNTIME)
        "onnxruntime",
        "onnxruntime_cuda",
#endif
#if defined(SAVE_WITH_TENSORRT)
        SAVE_TENSORRT_NAME,
#endif
    };
    return names;
}

#if defined(__linux__)
namespace {

// One text per physical core: the logical ones that share it.
int physical_cores() {
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        std::string siblings;  // the second name is that of older kernels
        for (const char* name : {"core_cpus_list", "thread_siblings_list"})
            if (siblings.empty()) std::ifstream(folder + name) >> siblings;
        if (!siblings.empty()) cores.insert(siblings);
    }
    return static_cast<int>(cores.size());
}

}  // namespace

int default_threads() {
    cpu_set_t set;
    CPU_ZERO(&set);
    const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
    const int allowed =
        known ? CPU_COUNT(&set) : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    const int cores = physical_cores();  // of the machine: 0 where it does not say
    return std::max(1, cores == 0 ? allowed : std::min(allowed, cores));
}
#else
int default_threads() {
    return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}
#endif

}  // namespace save_core
