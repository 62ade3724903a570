// manifest.json: the only contract of a bundle (save_deploy/bundle.py writes it).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace save_core {

constexpr const char* kManifest = "manifest.json";

struct FileRecord {
    std::string sha256;
    std::uint64_t size;
};

struct TensorSpec {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
};

struct GraphSpec {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
};

struct EngineEntry {
    std::string file, library, library_version, hardware_compatibility, os;
    std::string gpu;     // it was built on; empty: not told
    std::string onnx_sha256, onnx_data_sha256;  // of its graph and the graph's weights, where apart
    std::vector<std::string> targets;
    bool version_compatible = false, strip_weights = false;
};

struct Golden {
    int n = 0;
    double embedding_tolerance = 0;
    std::optional<double> max_abs_err;  // none: any
    double min_agreement = 0;
};

struct ConformanceCase {
    std::string name, frame, sound, mask, image_sha256;
};

struct Conformance {
    std::vector<ConformanceCase> cases;
    std::string waveform, audio_embedding, mask_logits;  // files
    int logits_step = 1;
    double waveform_tolerance = 0, embedding_tolerance = 0, min_agreement = 0;
    std::optional<double> logits_tolerance;  // none: any
};

struct Manifest {
    std::string model_name, precision;
    int res = 0, batch = 0;
    bool small_weights = false;  // no INT8 weight exceeds 64: sums of two products fit into 16 bits
    GraphSpec model, audio;
    Golden golden;
    std::vector<EngineEntry> engines;
    std::optional<Conformance> conformance;
    std::map<std::string, FileRecord> files;
};

// Throws Error(SAVE_DETAIL_BUNDLE): another format or version, a missing or ill-typed field, graphs
// or preprocessing this library does not know, a file name that leaves the bundle.
Manifest parse_manifest(const std::string& text, const std::string& path);
// Throws too when `folder` has no manifest.
Manifest read_manifest(const std::string& folder);

// Compare size and, with hashes, sha256 of every file that a runtime reads, which leaves out reports.
// cache: folder of marks, so that large files, graphs excepted, are not hashed again while they stay as
//     they were; empty: all are hashed.
// Returns the marks to make once the files are open, by name.
// Throws Error(SAVE_DETAIL_BUNDLE).
std::map<std::string, std::string> verify_files(const Manifest& manifest, const std::string& folder, bool hashes,
    const std::string& cache = "");

}  // namespace save_core
