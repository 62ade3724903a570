#include "engine_check.hpp"

#include <algorithm>

#include "kept.hpp"

namespace save_core {
namespace {

using Found = std::vector<Refusal>;
using Numbers = std::vector<long>;

constexpr const char* kCopyAgain = "copy the bundle again, or build the engine again";

struct Library {
    const char *name, *why_version;
};

const std::map<std::string, Library> kLibraries{
    {"tensorrt", {"TensorRT", "a TensorRT engine runs on the version that built it, and on newer ones "
                              "when it was built version-compatible"}},
    {"tensorrt_rtx", {"TensorRT-RTX", "engines are not compatible between releases of TensorRT-RTX "
                                      "unless its own validity check accepts them"}},
};

[[noreturn]] void malformed(const EngineEntry& entry, const std::string& got) {
    throw Error(SAVE_DETAIL_BUNDLE, "manifest entry of " + printable(entry.file) + " cannot be read",
        printable(got), "an entry written with this version of save-deploy", "build the engine again");
}

// "10.13.0.35" -> 10, 13, 0, 35, "13.0.0rc1" -> 13, 0, 0: compared as numbers, 10 comes after 9.
Numbers numbers(const EngineEntry& entry, const std::string& version) {
    Numbers found;
    for (std::size_t start = 0;;) {
        std::size_t end = version.find_first_not_of("0123456789", start);
        end = std::min(end, version.size());
        if (end == start && found.empty()) malformed(entry, "library_version " + version);
        if (end == start) return found;
        if (end - start > 9) malformed(entry, "library_version " + version);
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

void check_system(Found& found, const EngineEntry& entry, const Machine& machine) {
    if (entry.os != machine.os)
        found.push_back({"os", "engine of another operating system", machine.os, entry.os,
            "build the engine on " + machine.os});
}

bool runs_version(const EngineEntry& entry, const std::string& here) {
    const Numbers built = numbers(entry, entry.library_version), found = numbers(entry, here);
    const std::size_t n = std::min(built.size(), found.size());  // some leave the build number out
    if (n >= 3 && std::equal(built.begin(), built.begin() + static_cast<long>(n), found.begin()))
        return true;
    return entry.library == "tensorrt" && entry.version_compatible && found >= built;
}

// A library is linked in or not: that takes the place of importing it.
void check_library(Found& found, const EngineEntry& entry, const Machine& machine) {
    const auto known = kLibraries.find(entry.library);
    if (known == kLibraries.end()) malformed(entry, "library " + entry.library);
    (void)numbers(entry, entry.library_version);
    const auto here = machine.libraries.find(entry.library);
    const std::string name = known->second.name;
    const std::string built = entry.library + " " + entry.library_version;
    if (here == machine.libraries.end())
        found.push_back({"library", name + " is not compiled in", "not there", built,
            "build save_runtime with it"});
    else if (!runs_version(entry, here->second))
        found.push_back({"version", "engine of another " + name, entry.library + " " + here->second,
            built + " (" + known->second.why_version + ")",
            "build the engine again with " + here->second + ", or use a save_runtime linked with " +
                entry.library_version});
}

void check_gpu(Found& found, const EngineEntry& entry, const Machine& machine) {
    const std::string& level = entry.hardware_compatibility;
    if (level != "none" && level != "same_compute_capability" && level != "ampere_plus")
        malformed(entry, "hardware_compatibility " + level);
    if (!machine.gpu) {
        found.push_back({"gpu", "no usable NVIDIA GPU",
            machine.problem.empty() ? "none" : machine.problem,
            "a GPU of " + listed(entry.targets) + " with its driver",
            "install NVIDIA's driver (nvidia-smi must list the GPU), or use a CPU backend"});
        return;
    }
    const Gpu& gpu = *machine.gpu;
    const std::string here = "SM" + std::to_string(gpu.major) + std::to_string(gpu.minor);
    const std::string shown = gpu.name + " (" + here + ")";
    const auto& targets = entry.targets;
    if (level == "ampere_plus") {
        if (gpu.major < 8)
            found.push_back({"compute_capability", "GPU is older than the engine allows", shown,
                "compute capability 8.0 or newer (ampere_plus)", "build the engine on this GPU"});
    } else if (std::find(targets.begin(), targets.end(), here) == targets.end()) {
        found.push_back({"compute_capability", "engine of another compute capability", shown,
            listed(targets), "build the engine again for " + here});
    } else if (level == "none" && !entry.gpu.empty() && entry.gpu != gpu.name) {
        found.push_back({"gpu_model", "engine of another GPU model", gpu.name,
            entry.gpu + " (built with hardware_compatibility none)",
            "build the engine on this GPU, or with hardware_compatibility same_compute_capability"});
    }
}

std::string shortened(const std::string& graph, const std::string& weights) {
    return graph.substr(0, 12) + "..." +
           (weights.empty() ? "" : " with weights " + weights.substr(0, 12) + "...");
}

void check_hashes(Found& found, const EngineEntry& entry, const std::string& folder,
    const Manifest& manifest, bool hashed) {
    const std::string& graph = manifest.files.at(manifest.model.file).sha256;
    const auto data = manifest.files.find(manifest.model.file + ".data");
    const std::string weights = data == manifest.files.end() ? "" : data->second.sha256;
    if (entry.onnx_sha256 != graph || entry.onnx_data_sha256 != weights)
        found.push_back({"onnx", "engine of another " + manifest.model.file,
            "built from " + shortened(entry.onnx_sha256, entry.onnx_data_sha256),
            shortened(graph, weights), "build the engine again"});
    const auto record = manifest.files.find(entry.file);
    const bool is_listed = record != manifest.files.end();
    const std::string path = joined(folder, entry.file);
    if (!is_listed || !is_file(path))
        found.push_back({"file", "engine file is missing",
            "no " + entry.file + " in " + (is_listed ? folder : "the files of manifest.json"),
            entry.file + " beside manifest.json and listed there", kCopyAgain});
    else if (!hashed && sha256_of_file(path) != record->second.sha256)
        found.push_back({"sha256", "engine file was altered", "another sha256 of " + entry.file,
            record->second.sha256.substr(0, 12) + "...", kCopyAgain});
}

// An engine without a record is refused by check_hashes.
void check_source(Found& found, const EngineEntry& entry, const Manifest& manifest) {
    const auto record = manifest.files.find(entry.file);
    if (record == manifest.files.end() || built_here(record->second.sha256)) return;
    found.push_back({"trust", "an engine is code, and this one was not built on this machine",
        entry.file + ", sha256 " + record->second.sha256.substr(0, 12) + "...",
        "an engine built here, or a trusted source",
        "build it here: save-build BUNDLE; or, if you trust the source of the bundle: "
        "save_params.trust_engine = 1, save-infer --trust-engine"});
}

// Callers tell these apart: a missing device, a damaged bundle, an engine that does not fit.
save_detail detail_of(const std::string& rule) {
    if (rule == "gpu") return SAVE_DETAIL_DEVICE;
    return rule == "file" || rule == "sha256" ? SAVE_DETAIL_BUNDLE : SAVE_DETAIL_ENGINE;
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

Found engine_refusals(const EngineEntry& entry, const std::string& folder, const Manifest& manifest,
    const Machine& machine, bool hashed) {
    Found found;
    check_system(found, entry, machine);
    check_library(found, entry, machine);
    check_gpu(found, entry, machine);
    if (entry.strip_weights)
        found.push_back({"weights", "the engine has no weights", "built with --strip-weights",
            "an engine with its weights", "build the engine again without --strip-weights, or use Python"});
    check_hashes(found, entry, folder, manifest, hashed);
    return found;
}

const EngineEntry& choose_engine(const Manifest& manifest, const std::string& folder,
    const std::string& library, const Machine& machine, bool hashed, bool trust) {
    const EngineEntry* nearest = nullptr;
    Found reasons;
    for (const EngineEntry& entry : manifest.engines) {
        if (entry.library != library) continue;
        Found found = engine_refusals(entry, folder, manifest, machine, hashed);
        if (!trust) check_source(found, entry, manifest);
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
