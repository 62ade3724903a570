#include "preflight.hpp"

#include <algorithm>

namespace save_core {
namespace {

using Found = std::vector<Refusal>;
using Numbers = std::vector<long>;

constexpr double kMiB = 1 << 20;

[[noreturn]] void malformed(const EngineEntry& entry, const std::string& got) {
    throw Error(SAVE_DETAIL_BUNDLE, "manifest entry of " + printable(entry.file) + " cannot be read",
        printable(got), "an entry written with this version of save-deploy", "build the engine again");
}

// "580.65.06" -> 580, 65, 6, "13.0.0rc1" -> 13, 0, 0: compared as numbers, 10 comes after 9.
Numbers numbers(const EngineEntry& entry, const std::string& version) {
    Numbers found;
    for (std::size_t start = 0;;) {
        std::size_t end = version.find_first_not_of("0123456789", start);
        end = std::min(end, version.size());
        if (end == start && found.empty()) malformed(entry, "version " + version);
        if (end == start) return found;
        if (end - start > 9) malformed(entry, "version " + version);
        found.push_back(std::stol(version.substr(start, end - start)));
        if (end == version.size() || version[end] != '.') return found;
        start = end + 1;
    }
}

std::string listed(const std::vector<std::string>& texts) {
    std::string all;
    for (const std::string& text : texts) all += (all.empty() ? "" : ", ") + text;
    return all;
}

std::string mib(std::uint64_t bytes) {
    return std::to_string(static_cast<long>(static_cast<double>(bytes) / kMiB + 0.5)) + " MiB";
}

const LibraryRules& rules_of(const EngineEntry& entry, const Rules& rules) {
    const auto found = rules.libraries.find(entry.library);
    if (found == rules.libraries.end()) malformed(entry, "library " + entry.library);
    return found->second;
}

bool runs_version(const EngineEntry& entry, const std::string& here, const LibraryRules& known) {
    const Numbers wanted = numbers(entry, entry.library_version), found = numbers(entry, here);
    const std::size_t n = std::min(wanted.size(), found.size());  // some leave the build number out
    if (n >= 3 && std::equal(wanted.begin(), wanted.begin() + static_cast<long>(n), found.begin()))
        return true;
    const bool newer = known.other_version == "same_or_newer_if_version_compatible";
    return newer && entry.version_compatible && found >= wanted;
}

void check_library(
    Found& found, const EngineEntry& entry, const Machine& machine, const LibraryRules& known) {
    const auto here = machine.libraries.find(entry.library);
    const std::string built = entry.library + " " + entry.library_version;
    if (here == machine.libraries.end())
        found.push_back({"library", known.name + " is not compiled in", "not there", built,
            "build save_runtime with it"});
    else if (!runs_version(entry, here->second, known))
        found.push_back({"version", "engine of another " + known.name,
            entry.library + " " + here->second, built + " (" + known.reason + ")",
            "build the engine again with " + here->second + ", or use a save_runtime linked with " +
                entry.library_version});
}

void check_driver(Found& found, const EngineEntry& entry, const Machine& machine,
    const LibraryRules& known, const Rules& rules) {
    if (!machine.gpu) {
        found.push_back({"gpu", "no usable NVIDIA GPU",
            machine.problem.empty() ? "none" : machine.problem,
            "a GPU of " + listed(entry.targets) + " with its driver",
            "install NVIDIA's driver (nvidia-smi must list the GPU), or use a CPU backend"});
        return;
    }
    // what is loaded here decides; the CUDA of the driver that built the engine says nothing of it
    const auto built_for = machine.library_cuda.find(entry.library);
    long major = numbers(entry, built_for == machine.library_cuda.end() ? known.cuda : built_for->second)[0];
    if (!machine.cuda_runtime.empty()) major = std::max(major, numbers(entry, machine.cuda_runtime)[0]);
    const std::string cuda = std::to_string(major);
    std::string oldest;
    if (const auto systems = rules.driver.find(cuda); systems != rules.driver.end())
        if (const auto row = systems->second.find(machine.os.substr(0, machine.os.find('-')));
            row != systems->second.end())
            oldest = row->second;
    const bool too_old = !oldest.empty() && !machine.driver.empty() &&
                         numbers(entry, machine.driver) < numbers(entry, oldest);
    // the driver's own word covers systems and releases the table does not list
    const bool unserved = !machine.cuda.empty() && numbers(entry, machine.cuda)[0] < major;
    if (too_old || unserved)
        found.push_back({"driver", "NVIDIA's driver is too old",
            "driver " + (machine.driver.empty() ? "of unknown version" : machine.driver) +
                ", up to CUDA " + (machine.cuda.empty() ? "unknown" : machine.cuda),
            oldest.empty() ? "a driver for CUDA " + cuda
                           : "driver " + oldest + " or newer, for CUDA " + cuda,
            "install a newer driver, or the CUDA 12 builds of the libraries"});
}

void check_gpu(Found& found, const EngineEntry& entry, const Gpu& gpu, const Rules& rules) {
    const auto rule = rules.hardware_compatibility.find(entry.hardware_compatibility);
    if (rule == rules.hardware_compatibility.end())
        malformed(entry, "hardware_compatibility " + entry.hardware_compatibility);
    const std::string here = "SM" + std::to_string(gpu.major) + std::to_string(gpu.minor);
    const std::string shown = gpu.name + " (" + here + ")";
    const auto& targets = entry.targets;
    if (rule->second == "8.0_or_newer") {
        if (gpu.major < 8)
            found.push_back({"compute_capability", "GPU is older than the engine allows", shown,
                "compute capability 8.0 or newer (ampere_plus)", "build the engine on this GPU"});
    } else if (std::find(targets.begin(), targets.end(), here) == targets.end()) {
        found.push_back({"compute_capability", "engine of another compute capability", shown,
            listed(targets), "build the engine again for " + here});
    } else if (rule->second == "listed_and_same_gpu" && !entry.gpu.empty() && entry.gpu != gpu.name) {
        found.push_back({"gpu_model", "engine of another GPU model", gpu.name,
            entry.gpu + " (built with hardware_compatibility none)",
            "build the engine on this GPU, or with hardware_compatibility same_compute_capability"});
    }
    const std::uint64_t need = needed_bytes(entry, rules);
    const std::uint64_t room = gpu.free_bytes.value_or(gpu.total_bytes);
    if (need > room)
        found.push_back({"memory", "not enough GPU memory",
            mib(room) + (gpu.free_bytes ? " free on " : " in all on ") + gpu.name,
            mib(need) + " (weights and activations with a margin)",
            "end other programs on this GPU, or export a smaller model"});
}

std::string shortened(const std::string& graph, const std::string& weights) {
    return graph.substr(0, 12) + "..." +
           (weights.empty() ? "" : " with weights " + weights.substr(0, 12) + "...");
}

// A device, a file or an engine: what a caller can do about it differs.
save_detail detail_of(const std::string& rule) {
    for (const char* name : {"gpu", "driver", "memory"})
        if (rule == name) return SAVE_DETAIL_DEVICE;
    for (const char* name : {"file", "size", "header", "magic", "header_size", "header_version",
             "header_targets", "sha256"})
        if (rule == name) return SAVE_DETAIL_BUNDLE;
    return SAVE_DETAIL_ENGINE;
}

[[noreturn]] void refuse(const EngineEntry& entry, const Found& found) {
    std::string cure = found[0].cure;
    for (std::size_t i = 1; i < found.size(); ++i)
        cure += "\n            also: " + found[i].what + " (" + printable(found[i].got) + "); " +
                printable(found[i].cure);
    throw Error(detail_of(found[0].rule), printable(entry.file) + " cannot run here: " + found[0].what,
        printable(found[0].got), printable(found[0].expected, 400), cure);
}

}  // namespace

std::string this_os() {
#if defined(__linux__) && defined(__x86_64__)
    return "linux-x86_64";
#elif defined(__linux__) && defined(__aarch64__)
    return "linux-aarch64";
#else
    return "";
#endif
}

std::uint64_t needed_bytes(const EngineEntry& entry, const Rules& rules) {
    const std::uint64_t weights = entry.weights_bytes != 0 ? entry.weights_bytes : entry.engine_bytes;
    const std::uint64_t working = entry.activation_bytes != 0 ? entry.activation_bytes : weights;
    const double planned = static_cast<double>(weights + working);
    // a manifest may say anything: more memory than any GPU has is refused in any case
    const double asked = std::min(planned * rules.memory_factor, 1e18);
    return static_cast<std::uint64_t>(asked) + rules.memory_extra_bytes;
}

Found machine_refusals(const EngineEntry& entry, const Machine& machine, const Rules& rules) {
    const LibraryRules& known = rules_of(entry, rules);
    Found found;
    if (entry.os != machine.os)
        found.push_back({"os", "engine of another operating system", machine.os, entry.os,
            "build the engine on " + machine.os});
    check_library(found, entry, machine, known);
    check_driver(found, entry, machine, known, rules);
    if (entry.strip_weights)
        found.push_back({"weights", "the engine has no weights", "built with --strip-weights",
            "an engine with its weights", "build the engine again without --strip-weights, or use Python"});
    if (machine.gpu) check_gpu(found, entry, *machine.gpu, rules);
    return found;
}

Found engine_refusals(const EngineEntry& entry, const std::string& folder, const Manifest& manifest,
    const Machine& machine, bool hashed) {
    const Rules& rules = manifest.rules ? *manifest.rules : own_rules();
    Found found = machine_refusals(entry, machine, rules);
    const std::string& graph = manifest.files.at(manifest.model.file).sha256;
    const auto data = manifest.files.find(manifest.model.file + ".data");
    const std::string weights = data == manifest.files.end() ? "" : data->second.sha256;
    if (entry.onnx_sha256 != graph || entry.onnx_data_sha256 != weights)
        found.push_back({"onnx", "engine of another " + manifest.model.file,
            "built from " + shortened(entry.onnx_sha256, entry.onnx_data_sha256),
            shortened(graph, weights), "build the engine again"});
    const Found file = file_refusals(entry, folder, manifest, rules, hashed);
    found.insert(found.end(), file.begin(), file.end());
    return found;
}

const EngineEntry& choose_engine(const Manifest& manifest, const std::string& folder,
    const std::string& library, const Machine& machine, bool hashed) {
    const EngineEntry* nearest = nullptr;
    Found reasons;
    for (const EngineEntry& entry : manifest.engines) {
        if (entry.library != library) continue;
        Found found = engine_refusals(entry, folder, manifest, machine, hashed);
        if (found.empty()) return entry;
        if (nearest != nullptr && found.size() >= reasons.size()) continue;
        nearest = &entry;
        reasons = std::move(found);
    }
    if (nearest != nullptr) refuse(*nearest, reasons);
    std::string got;
    for (const EngineEntry& entry : manifest.engines)
        got += (got.empty() ? "" : ", ") + entry.file + " for " + entry.library;
    throw Error(SAVE_DETAIL_ENGINE, "bundle without an engine for " + library,
        got.empty() ? "no engine" : printable(got), "an engine for " + library,
        "build one from this bundle, or use a CPU backend");
}

}  // namespace save_core
