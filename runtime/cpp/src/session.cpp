#include "session.hpp"

#include <algorithm>
#include <fstream>
#include <set>
#include <thread>
#include <utility>

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
#endif
#if defined(SAVE_WITH_TENSORRT)
        SAVE_TENSORRT_NAME,
#endif
    };
    return names;
}

#if defined(__linux__)
namespace {

int read_number(const std::string& path) {
    int value = -1;
    std::ifstream(path) >> value;
    return value;
}

}  // namespace

int default_threads() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    std::set<std::pair<int, int>> cores;  // (socket, core); -1 where the system does not say
    int logical = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) continue;
        ++logical;
        const std::string topology =
            "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        cores.insert({read_number(topology + "physical_package_id"), read_number(topology + "core_id")});
    }
    const bool known = cores.count({-1, -1}) == 0;
    return std::max(1, known ? static_cast<int>(cores.size()) : logical);
}
#else
int default_threads() {
    return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}
#endif

}  // namespace save_core
