#include "cpu.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

#include "error.hpp"

namespace save_core {
namespace {

constexpr const char* kDotProducts[] = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"};

}  // namespace

bool has_int8_dot_product(const std::string& cpuinfo) {
    std::istringstream lines(cpuinfo);
    std::string line;
    while (std::getline(lines, line)) {
        if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
        const std::size_t colon = line.find(':');
        if (colon == std::string::npos) return true;
        std::istringstream words(line.substr(colon + 1));
        const std::vector<std::string> flags{
            std::istream_iterator<std::string>(words), std::istream_iterator<std::string>()};
        return flags.empty() ||
               std::find_first_of(flags.begin(), flags.end(), std::begin(kDotProducts),
                   std::end(kDotProducts)) != flags.end();
    }
    return true;
}

bool has_int8_dot_product() {
    std::ifstream file("/proc/cpuinfo");
    std::ostringstream text;
    if (file) text << file.rdbuf();
    return has_int8_dot_product(text.str());
}

std::string preferred_cpu_backend(
    const std::string& precision, bool dot_product, const std::vector<std::string>& compiled) {
    const bool int8 = precision == "int8" || precision.rfind("int8_", 0) == 0;
    std::vector<std::string> order = {"openvino", "onnxruntime"};
    if (int8 && !dot_product) std::reverse(order.begin(), order.end());
    for (const std::string& name : order)
        if (std::find(compiled.begin(), compiled.end(), name) != compiled.end()) return name;
    std::string all;
    for (const std::string& name : compiled) all += (all.empty() ? "" : ", ") + name;
    throw Error(SAVE_DETAIL_BACKEND, "no CPU backend is compiled in", all.empty() ? "none" : all,
        "openvino", "build save_runtime with -DOpenVINO_DIR=...");
}

}  // namespace save_core
