#include "manifest.hpp"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <set>

#include "error.hpp"
#include "files.hpp"
#include "json.hpp"
#include "kept.hpp"
#include "manifest_checks.hpp"
#include "npy.hpp"
#include "save_runtime.h"

namespace save_core {
namespace {

constexpr const char* kFormat = "save-deploy-bundle";
constexpr std::int64_t kFormatVersion = 1;
constexpr std::int64_t kMaxBatch = 1024;  // frames per call of a graph
constexpr std::size_t kMaxGraphs = 16;    // with further batches
constexpr std::uint64_t kMaxManifestBytes = 64 << 20;
constexpr std::uint64_t kSmallBytes = 1'000'000;  // hashed at every start
// Written for people, read by no runtime: a bundle runs without them.
constexpr const char* kForPeople[] = {"report.md", "report.json", "calibration.json"};
constexpr const char* kGoldenFiles[] = {
    "image.npy", "waveform.npy", "audio_embedding.npy", "mask_logits.npy"};

// What this library does to frames and sounds; a bundle that asks for anything else is refused.
constexpr const char* kPreprocessing = R"({
    "frame": {"color": "RGB", "dtype": "uint8", "layout": "NHWC", "resize": "square",
              "interpolation": "bilinear_antialias", "normalisation": "in the graph"},
    "sound": {"sample_rate_hz": 16000, "channels": "mean", "window_samples": 16000,
              "window_step_s": 0.96, "short": "completed with silence"},
    "mask": {"threshold_logit": 0.0, "resize": "bilinear on logits to the frame size"}
})";

// A path below the bundle: relative, without "..".
void check_name(const std::string& name) {
    const std::filesystem::path path(name);
    const bool named = !path.lexically_normal().empty() && path.lexically_normal() != ".";
    bool inside = named && !path.is_absolute() && name.find('\\') == std::string::npos &&
                  name.find('\0') == std::string::npos;
    inside = inside && name.find(':') == std::string::npos && name.size() <= 1000 &&
             printable(name, name.size()) == name && visible(name) == name;
    for (const auto& part : path) inside = inside && part != ".." && part.native().size() <= 255;
    if (!inside) refuse_json("file name " + name);
}

std::map<std::string, FileRecord> parse_files(const Json& files) {
    if (!files.is_object()) refuse_json("files is no object");
    std::map<std::string, FileRecord> found;
    for (const auto& [name, record] : files.items()) {
        check_name(name);
        const std::string sha256 = text(record, "sha256");
        if (sha256.size() != 64 ||
            sha256.find_first_not_of("0123456789abcdef") != std::string::npos)
            refuse_json("sha256 of " + name);
        found[name] = {sha256,
            static_cast<std::uint64_t>(whole(field(record, "size"), "size", 0, INT64_MAX))};
    }
    return found;
}

std::string listed(const Manifest& manifest, const std::string& name) {
    if (manifest.files.count(name) == 0) refuse_json("file " + name + " without size and sha256");
    return name;
}

TensorSpec parse_tensor(const Json& values) {
    TensorSpec spec{text(values, "name"), text(values, "dtype"), {}};
    for (const Json& d : list(values, "shape")) spec.shape.push_back(whole(d, "shape", 1, 1 << 20));
    if (spec.shape.size() > 8) refuse_json("shape " + shown(spec.shape));
    return spec;
}

GraphSpec parse_graph(const Manifest& manifest, const Json& values, const char* file) {
    GraphSpec graph{listed(manifest, text(values, "file")), {}, {}};
    if (graph.file != file) refuse_json("graph in " + graph.file + " instead of " + file);
    for (const Json& row : list(values, "inputs")) graph.inputs.push_back(parse_tensor(row));
    for (const Json& row : list(values, "outputs")) graph.outputs.push_back(parse_tensor(row));
    return graph;
}

void require(const std::vector<TensorSpec>& found, const std::vector<TensorSpec>& wanted) {
    const auto row = [](const TensorSpec& t) { return t.name + " " + t.dtype + " " + shown(t.shape); };
    bool same = found.size() == wanted.size();
    for (std::size_t i = 0; same && i < wanted.size(); ++i) same = row(found[i]) == row(wanted[i]);
    if (same) return;
    std::string got, expected;
    for (const TensorSpec& t : found) got += row(t) + "; ";
    for (const TensorSpec& t : wanted) expected += row(t) + "; ";
    throw Error(SAVE_DETAIL_BUNDLE, "graph with another interface", printable(got), expected,
        "export again with this version of save-deploy");
}

// The graphs for more frames a call, which are not run here: read as in save_deploy/bundle.py.
void check_batches(const Manifest& manifest, const Json& model) {
    if (!model.contains("batches")) return;
    const Json& rows = list(model, "batches");
    if (rows.size() > kMaxGraphs) refuse_json("batches of " + std::to_string(rows.size()) + " graphs");
    std::set<std::int64_t> seen = {manifest.batch};
    for (const Json& row : rows) {
        const std::int64_t batch = whole(field(row, "batch"), "batch", 1, kMaxBatch);
        const std::string file = text(row, "file"), name = "model_x" + std::to_string(batch) + ".onnx";
        if (!seen.insert(batch).second) refuse_json("batch " + std::to_string(batch) + " again");
        if (file != name) refuse_json("graph in " + file + " instead of " + name);
        (void)listed(manifest, file);
    }
}

void parse_graphs(Manifest& manifest, const Json& graphs) {
    manifest.model = parse_graph(manifest, field(graphs, "model"), "model.onnx");
    manifest.audio = parse_graph(manifest, field(graphs, "audio"), "audio.onnx");
    if (manifest.model.inputs.empty() || manifest.model.inputs[0].shape.size() != 4)
        refuse_json("model graph without an image input");
    const std::int64_t batch = manifest.model.inputs[0].shape[0], side = manifest.res;
    if (batch > kMaxBatch) refuse_json("batch " + std::to_string(batch));
    manifest.batch = static_cast<int>(batch);
    require(manifest.model.inputs, {{"image", "uint8", {batch, side, side, 3}},
                                       {"audio_embedding", "float32", {batch, SAVE_EMBEDDING_SIZE}}});
    require(manifest.model.outputs, {{"mask_logits", "float32", {batch, 1, side, side}}});
    require(manifest.audio.inputs, {{"waveform", "float32", {1, SAVE_WINDOW_SAMPLES}}});
    require(manifest.audio.outputs, {{"audio_embedding", "float32", {1, SAVE_EMBEDDING_SIZE}}});
    check_batches(manifest, field(graphs, "model"));
}

EngineEntry parse_engine(const Json& values) {
    EngineEntry entry;
    // not `listed`: an engine that was left out is refused when it is asked for
    entry.file = text(values, "file");
    check_name(entry.file);
    entry.library = text(values, "library");
    entry.library_version = text(values, "library_version");
    entry.hardware_compatibility = text(values, "hardware_compatibility");
    entry.os = text(values, "os");
    entry.onnx_sha256 = text(values, "onnx_sha256");
    entry.gpu = text_or_empty(values, "gpu");
    entry.onnx_data_sha256 = text_or_empty(values, "onnx_data_sha256");
    for (const Json& target : list(values, "targets")) {
        if (!target.is_string()) refuse_json("targets are no texts");
        entry.targets.push_back(target.get<std::string>());
    }
    entry.version_compatible = flag(values, "version_compatible");
    const Json& options = object_of(values, "options");
    entry.strip_weights = !is_absent(options, "strip_weights") && flag(options, "strip_weights");
    return entry;
}

Golden parse_golden(const Manifest& manifest, const Json& values) {
    const Json& budget = field(values, "budget");
    for (const char* name : kGoldenFiles) (void)listed(manifest, std::string("golden/") + name);
    const Golden golden = {count(values, "n", 1, 1 << 20), number(values, "audio_embedding_tolerance"),
        number_or_none(budget, "max_abs_err"), number(budget, "min_agreement")};
    if (golden.embedding_tolerance < 0.0 || golden.max_abs_err.value_or(0.0) < 0.0)
        refuse_json("a tolerance below 0");
    if (golden.min_agreement < 0.0 || golden.min_agreement > 1.0)
        refuse_json("min_agreement, allowed: 0 to 1");
    return golden;
}

std::optional<Conformance> parse_conformance(const Manifest& manifest, const Json& root) {
    const auto found = root.find("conformance");
    if (found == root.end() || (found->is_object() && found->empty())) return std::nullopt;
    const Json& tolerances = field(*found, "tolerances");
    Conformance pack;
    pack.waveform = listed(manifest, text(*found, "waveform"));
    pack.audio_embedding = listed(manifest, text(*found, "audio_embedding"));
    pack.mask_logits = listed(manifest, text(*found, "mask_logits"));
    pack.logits_step = count(*found, "logits_step", 1, manifest.res);
    pack.waveform_tolerance = number(tolerances, "waveform");
    pack.embedding_tolerance = number(tolerances, "audio_embedding");
    pack.logits_tolerance = number_or_none(tolerances, "mask_logits");
    pack.min_agreement = number(tolerances, "min_agreement");
    for (const Json& row : list(*found, "cases"))
        pack.cases.push_back({text(row, "name"), listed(manifest, text(row, "frame")),
            listed(manifest, text(row, "sound")), listed(manifest, text(row, "mask")),
            text(row, "image_sha256")});
    if (pack.cases.empty()) refuse_json("conformance without cases");
    return pack;
}

// SMALL_WEIGHT of save_deploy/bundle.py.
constexpr std::int64_t kSmallWeight = 64;

bool has_small_weights(const Json& precision) {
    const auto found = precision.find("quantization");
    if (found == precision.end() || found->is_null()) return false;
    if (!found->is_object()) refuse_json("quantization is no object");
    const auto largest = found->find("largest_weight");
    return largest != found->end() && whole(*largest, "largest_weight", 0, 128) <= kSmallWeight;
}

Manifest parse_checked(const std::string& source) {
    const Json root = parse_json(source);
    const std::string format = text(root, "format");
    const Json& version = field(root, "format_version");
    if (format != kFormat || !version.is_number_integer() || version != kFormatVersion)
        throw Error(SAVE_DETAIL_BUNDLE, "bundle of another format",
            printable(format + " version " + version.dump()),
            std::string(kFormat) + " version " + std::to_string(kFormatVersion),
            "export again with this version of save-deploy");
    if (field(root, "preprocessing") != Json::parse(kPreprocessing))
        throw Error(SAVE_DETAIL_BUNDLE, "bundle with another preprocessing",
            printable(root["preprocessing"].dump()), "the preprocessing of format version 1",
            "use the version of save_runtime that belongs to the save-deploy that exported it");
    Manifest manifest;
    const Json& config = field(root, "config");
    manifest.model_name = text(config, "name");
    manifest.res = count(config, "res", 16, 8192);
    check_config(config);
    check_notes(root);
    const Json& precision = field(root, "precision");
    manifest.precision = text(precision, "precision");
    manifest.small_weights = has_small_weights(precision);
    manifest.files = parse_files(field(root, "files"));
    parse_graphs(manifest, field(root, "graphs"));
    manifest.golden = parse_golden(manifest, field(root, "golden"));
    if (root.contains("engines"))
        for (const Json& row : list(root, "engines"))
            manifest.engines.push_back(parse_engine(row));
    manifest.conformance = parse_conformance(manifest, root);
    return manifest;
}

}  // namespace

Manifest parse_manifest(const std::string& source, const std::string& path) {
    try {
        return parse_checked(source);
    } catch (const Json::exception& error) {
        refuse_json(path + ": " + error.what());
    }
}

Manifest read_manifest(const std::string& folder) {
    const std::string path = joined(folder, kManifest);
    if (!is_file(path))
        throw Error(SAVE_DETAIL_BUNDLE, "not a bundle", folder + " without " + kManifest,
            "a folder written by save-export", "save-export --res 256 --fp16 -o DIR");
    if (file_size(path) > kMaxManifestBytes) refuse_json(path + " is larger than 64 MiB");
    const Bytes bytes = read_file(path, SAVE_DETAIL_BUNDLE, kMaxManifestBytes);
    return parse_manifest(std::string(bytes.begin(), bytes.end()), path);
}

std::map<std::string, std::string> verify_files(
    const Manifest& manifest, const std::string& folder, bool hashes, const std::string& cache) {
    std::map<std::string, std::string> marks;
    for (const auto& [name, record] : manifest.files) {
        if (std::find(std::begin(kForPeople), std::end(kForPeople), name) != std::end(kForPeople)) continue;
        const std::string path = joined(folder, name);
        if (!is_file(path))
            throw Error(SAVE_DETAIL_BUNDLE, "bundle is incomplete", "no " + name + " in " + folder,
                "all files of the manifest", "copy the bundle again, or export it again");
        const std::uint64_t size = file_size(path);
        const bool once = !cache.empty() && hashes && size == record.size && size > kSmallBytes &&
                          std::filesystem::path(name).extension() != ".onnx";
        const auto mark = [&, &sha256 = record.sha256](const std::string& stamp) {
            return once ? mark_of_check(cache, path, sha256, stamp) : std::string();
        };
        if (once && is_file(mark(stamp_of(path)))) continue;
        std::string stamp;
        if (size != record.size || (hashes && sha256_of_file(path, &stamp) != record.sha256))
            throw Error(SAVE_DETAIL_BUNDLE, "bundle file was altered",
                name + " (" + std::to_string(size) + " bytes)",
                std::to_string(record.size) + " bytes, sha256 " + record.sha256.substr(0, 12) + "...",
                "copy the bundle again, or export it again");
        if (const std::string made = mark(stamp); !made.empty()) marks[name] = made;
    }
    return marks;
}

}  // namespace save_core
