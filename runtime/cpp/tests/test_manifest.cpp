// What a manifest must be, and what is refused before anything is loaded.
#include <cstdlib>
#include <filesystem>
#include <string>

#include "check.hpp"
#include "cpu.hpp"
#include "engine_check.hpp"
#include "files.hpp"
#include "kept.hpp"
#include "manifest.hpp"
#include "sample_manifest.hpp"

using namespace save_core;

namespace {

std::string with(const std::string& from, const std::string& to) {
    std::string text = sample_manifest();
    const std::size_t at = text.find(from);
    CHECK(at != std::string::npos);
    return text.replace(at, from.size(), to);
}

void test_manifest() {
    const Manifest manifest = parse_manifest(sample_manifest(), "m");
    CHECK(manifest.res == 64 && manifest.batch == 1 && manifest.precision == "fp32");
    CHECK(manifest.golden.max_abs_err == 0.001 && manifest.files.at("model.onnx").size == 5);
    CHECK(manifest.conformance && !manifest.conformance->logits_tolerance);
    CHECK(manifest.engines.size() == 1 && manifest.engines[0].targets[1] == "SM89");
    CHECK(!parse_manifest(with("\"conformance\": {", "\"conformance\": {}, \"x\": {"), "m").conformance);

    const struct {
        const char *from, *to, *part;
    } broken[] = {
        {"\"format_version\": 1", "\"format_version\": 2", "version 2"},
        {"save-deploy-bundle", "other", "another format"},
        {"\"res\": 64", "\"res\": 6.5e300", "no whole number"},
        {"\"res\": 64", "\"res\": 18446744073709551615", "allowed: 16 to 8192"},
        {"\"res\": 64", "\"res\": \"64\"", "no whole number"},
        {"\"res\": 64", "\"rez\": 64", "no res"},
        {"\"res\": 64", "\"res\": 64, \"depth\": 65", "depth = 65, allowed: 1 to 64"},
        {"\"res\": 64", "\"res\": 64, \"audio_mode\": 1", "audio_mode is no text"},
        {"\"res\": 64", "\"res\": 64, \"image_adapter_skip\": null", "image_adapter_skip is no text"},
        {"\"res\": 64", "\"res\": 64, \"image_adapter_ratio\": 17", "allowed: 1e-12 to 16"},
        {"\"res\": 64", "\"res\": 64, \"global_blocks\": [2, -5]", "global_blocks = -5"},
        {"\"fp32\"}", "\"fp32\", \"islands\": [{\"module\": 1}]}", "module is no text"},
        {"\"fp32\"}", "\"fp32\"}, \"merge\": {\"rewrites\": [{\"name\": \"a\", \"macs_after\": \"b\"}]}",
            "macs_after is no number"},
        {"\"res\": 64", "\"res\": 128", "another interface"},
        {"[1, 64, 64, 3]", "[0, 64, 64, 3]", "shape"},
        {"\"uint8\"", "\"float32\"", "another interface"},
        {"bilinear_antialias", "bicubic", "another preprocessing"},
        {"\"model.onnx\": {\"sha256\"", "\"../model.onnx\": {\"sha256\"", "file name ../model.onnx"},
        {"\"model.onnx\": {\"sha256\"", "\"/model.onnx\": {\"sha256\"", "file name /model.onnx"},
        {"\"model.onnx\": {\"sha256\"", "\"m.onnx\": {\"sha256\"", "without size and sha256"},
        {"\"model.onnx\": {\"sha256\"", "\"a\\u001b[2J\": {\"sha256\"", "file name a [2J"},
        {"\"model.onnx\": {\"sha256\"", "\"a\\u009bJ\": {\"sha256\"", "file name a"},
        {"\"file\": \"model.onnx\"", "\"file\": \"audio.onnx\"", "instead of model.onnx"},
        {"{\"sha256\": \"2cf2", "{\"sha256\": \"2CF2", "sha256 of"},
        {"\"size\": 5", "\"size\": -5", "size = -5"},
        {"\"size\": 5", "\"size\": 9223372036854775808", "size = 9223372036854775808"},
        {"\"max_abs_err\": 0.001", "\"max_abs_err\": \"x\"", "no number"},
        {"\"max_abs_err\": 0.001", "\"max_abs_err\": -1", "a tolerance below 0"},
        {"\"audio_embedding_tolerance\": 0.001", "\"audio_embedding_tolerance\": -1", "below 0"},
        {"\"min_agreement\": 0.9999", "\"min_agreement\": 1.5", "allowed: 0 to 1"},
        {"\"min_agreement\": 0.9999", "\"min_agreement\": -1", "allowed: 0 to 1"},
        {"{\"format\"", "[\"format\"", "manifest cannot be read"},
        {"\"targets\": [\"SM86\"", "\"targets\": [86", "no texts"},
        {"\"strip_weights\": false", "\"strip_weights\": 0", "no boolean"},
        {"\"golden/image.npy\"", "\"golden/picture.npy\"", "golden/image.npy without size"},
    };
    for (const auto& one : broken)
        CHECK_THROWS(parse_manifest(with(one.from, one.to), "m"), SAVE_DETAIL_BUNDLE, one.part);
    CHECK_THROWS(parse_manifest("", "m"), SAVE_DETAIL_BUNDLE, "manifest cannot be read");
    CHECK_THROWS(parse_manifest(std::string(500'000, '['), "m"), SAVE_DETAIL_BUNDLE, "cannot be read");
    CHECK_THROWS(read_manifest("no/such/folder"), SAVE_DETAIL_BUNDLE, "not a bundle");
}

// Graphs for more frames a call, which this library does not run, are read as Python reads them.
void test_batches() {
    const auto batches = [](const std::string& entry, const std::string& file = "model_x2.onnx") {
        std::string source = with("\"file\": \"model.onnx\"", "\"file\": \"model.onnx\", \"batches\": " + entry);
        const std::string first = "\"model.rtx.plan\": {\"sha256\"";
        return source.replace(source.find(first), first.size(),
            "\"" + file + "\": {\"sha256\": \"" + std::string(64, 'a') + "\", \"size\": 1}, " + first);
    };
    const std::string two = R"({"batch": 2, "file": "model_x2.onnx"})";
    for (const std::string& fine : {std::string("[]"), "[" + two + "]"})
        CHECK(parse_manifest(batches(fine), "m").batch == 1);
    std::string many = "[" + two;
    for (int i = 0; i < 16; ++i) many += ", " + two;
    const struct {
        std::string entry, part;
    } broken[] = {
        {"null", "batches is no list"},
        {"{}", "batches is no list"},
        {"[2]", "batch"},
        {many + "]", "17 graphs"},
        {"[" + two + ", " + two + "]", "batch 2 again"},
        {R"([{"batch": 1, "file": "model_x1.onnx"}])", "batch 1 again"},
        {R"([{"batch": 0, "file": "model_x0.onnx"}])", "batch = 0"},
        {R"([{"batch": 1025, "file": "model_x1025.onnx"}])", "batch = 1025"},
        {R"([{"batch": "2", "file": "model_x2.onnx"}])", "no whole number"},
        {R"([{"batch": 2, "file": "model_x3.onnx"}])", "instead of model_x2.onnx"},
        {R"([{"batch": 2, "file": 2}])", "file is no text"},
        {R"([{"batch": 2}])", "no file"},
    };
    for (const auto& one : broken)
        CHECK_THROWS(parse_manifest(batches(one.entry), "m"), SAVE_DETAIL_BUNDLE, one.part);
    CHECK_THROWS(parse_manifest(batches("[" + two + "]", "other.onnx"), "m"), SAVE_DETAIL_BUNDLE,
        "model_x2.onnx without size and sha256");
}

// Manifests of earlier versions carry the rules of their exporter; they are passed over.
void test_older_bundles() {
    for (const char* rules : {R"({"format_version": 1, "libraries": {}})", R"({"format_version": 2})", "7"}) {
        const std::string part = std::string("\"preflight\": ") + rules + ", \"golden\"";
        CHECK(parse_manifest(with("\"golden\"", part), "m").engines.size() == 1);
    }
}

// Whether ONNX Runtime may use its fast INT8 kernels; of quantized bundles only.
void test_small_weights() {
    const auto quantized = [](const std::string& entry) {
        return with("\"precision\": {\"precision\": \"fp32\"}",
            "\"precision\": {\"precision\": \"int8\", \"quantization\": " + entry + "}");
    };
    CHECK(!parse_manifest(sample_manifest(), "m").small_weights);
    CHECK(!parse_manifest(quantized("null"), "m").small_weights);
    CHECK(!parse_manifest(quantized("{}"), "m").small_weights);
    CHECK(parse_manifest(quantized("{\"largest_weight\": 64}"), "m").small_weights);
    CHECK(!parse_manifest(quantized("{\"largest_weight\": 65}"), "m").small_weights);
    for (const char* wrong : {"7", "[]", "{\"largest_weight\": \"64\"}", "{\"largest_weight\": 1e300}",
             "{\"largest_weight\": -1}", "{\"largest_weight\": 129}", "{\"largest_weight\": null}"})
        CHECK_THROWS(parse_manifest(quantized(wrong), "m"), SAVE_DETAIL_BUNDLE, "");
}

// CPU flags of real machines, shortened; the second processor is not read.
void test_preferred_backend() {
    const std::string avx2 = "processor\t: 0\nflags\t\t: fpu avx2 fma\nprocessor\t: 1\nflags : avx_vnni\n";
    const std::string vnni = "vmx flags\t: x\nflags\t\t: fpu avx512f avx512_vnni\n";
    CHECK(!has_int8_dot_product(avx2) && has_int8_dot_product(vnni));
    CHECK(has_int8_dot_product("Features\t: fp asimd asimddp\n"));
    CHECK(!has_int8_dot_product("Features\t: fp asimd\n"));
    CHECK(!has_int8_dot_product("flags : avx512_vnni2 xavx_vnni\n"));  // whole words
    for (const char* unknown : {"", "model name: x\n", "flags\n", "flags :\n"})
        CHECK(has_int8_dot_product(unknown));

    const std::vector<std::string> both = {"openvino", "onnxruntime"}, ours = {"openvino"};
    for (const char* precision : {"int8", "int8_fp16"}) {
        CHECK(preferred_cpu_backend(precision, false, both) == "onnxruntime");
        CHECK(preferred_cpu_backend(precision, true, both) == "openvino");
        CHECK(preferred_cpu_backend(precision, false, ours) == "openvino");
    }
    for (const char* precision : {"fp32", "fp16", "fp8"})
        CHECK(preferred_cpu_backend(precision, false, both) == "openvino");
    CHECK(preferred_cpu_backend("fp32", true, {"onnxruntime"}) == "onnxruntime");
    CHECK_THROWS(preferred_cpu_backend("int8", false, {"tensorrt"}), SAVE_DETAIL_BACKEND, "tensorrt");
}

// An engine is code: it runs where it was built, or where its source is trusted.
void test_trust() {
    const Manifest manifest = parse_manifest(sample_manifest(), "m");
    const EngineEntry& entry = manifest.engines[0];
    Machine machine;
    machine.os = entry.os;
    machine.libraries[entry.library] = entry.library_version;
    const auto reasons = [&](bool trust) {
        try {
            (void)choose_engine(manifest, "no/such/folder", entry.library, machine, true, trust);
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    const std::string refused = "an engine is code, and this one was not built on this machine";
    const bool listed = manifest.files.count(entry.file) == 1;
    CHECK((reasons(false).find(refused) != std::string::npos) == listed);
    CHECK(reasons(true).find(refused) == std::string::npos && !reasons(true).empty());
    const std::string sha256(64, 'a');
    const std::filesystem::path cache = std::filesystem::temp_directory_path() / "save_test_trust";
    std::filesystem::create_directories(cache / "engines_built_here");
    setenv("SAVE_DEPLOY_CACHE", cache.c_str(), 1);
    CHECK(!built_here(sha256));
    write_file((cache / "engines_built_here" / sha256).string(), "", 0);
    CHECK(built_here(sha256));
    std::filesystem::remove_all(cache);
}

// Closed brackets: the parser itself is content with them.
void test_depth() {
    const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
    for (const char* key : {"\"preprocessing\": ", "\"format_version\": ", "\"preflight\": "})
        CHECK_THROWS(parse_manifest(with("\"config\":", key + deep + ", \"config\":"), "m"),
            SAVE_DETAIL_BUNDLE, "deeper than 64");
    const std::string allowed = std::string(60, '[') + std::string(60, ']');
    (void)parse_manifest(with("\"config\":", "\"more\": " + allowed + ", \"config\":"), "m");
}

}  // namespace

int main() {
    test_manifest();
    test_batches();
    test_older_bundles();
    test_small_weights();
    test_depth();
    test_trust();
    test_preferred_backend();
    return failures == 0 ? 0 : 1;
}
