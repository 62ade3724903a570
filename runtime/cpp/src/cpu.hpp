// Which CPU backend is the faster one here.
#pragma once

#include <string>
#include <vector>

namespace save_core {

// Whether a CPU has an INT8 dot product (VNNI, AMX, Arm), or its flags are not told. cpuinfo: the text
// of /proc/cpuinfo. As save_deploy/machine.py reads it.
bool has_int8_dot_product(const std::string& cpuinfo);
// Of this machine.
bool has_int8_dot_product();

// The CPU backend of `auto` among those compiled in: openvino, but onnxruntime for INT8 on a CPU without
// an INT8 dot product, where its kernels are faster. As preferred_backend in runtime/session/open.py.
// Throws Error(SAVE_DETAIL_BACKEND) when none is compiled in.
std::string preferred_cpu_backend(const std::string& precision, bool dot_product,
    const std::vector<std::string>& compiled);

}  // namespace save_core
