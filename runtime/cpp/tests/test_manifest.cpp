// What a manifest must be, and what is refused before anything is loaded.
#include <string>

#include "check.hpp"
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
        {"\"res\": 64", "\"res\": 128", "another interface"},
        {"[1, 64, 64, 3]", "[0, 64, 64, 3]", "shape"},
        {"\"uint8\"", "\"float32\"", "another interface"},
        {"bilinear_antialias", "bicubic", "another preprocessing"},
        {"\"model.onnx\": {\"sha256\"", "\"../model.onnx\": {\"sha256\"", "file name ../model.onnx"},
        {"\"model.onnx\": {\"sha256\"", "\"/model.onnx\": {\"sha256\"", "file name /model.onnx"},
        {"\"model.onnx\": {\"sha256\"", "\"m.onnx\": {\"sha256\"", "without size and sha256"},
        {"{\"sha256\": \"2cf2", "{\"sha256\": \"2CF2", "sha256 of"},
        {"\"size\": 5", "\"size\": -5", "size = -5"},
        {"\"max_abs_err\": 0.001", "\"max_abs_err\": \"x\"", "no number"},
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

// Manifests of earlier versions carry the rules of their exporter; they are passed over.
void test_older_bundles() {
    for (const char* rules : {R"({"format_version": 1, "libraries": {}})", R"({"format_version": 2})", "7"}) {
        const std::string part = std::string("\"preflight\": ") + rules + ", \"golden\"";
        CHECK(parse_manifest(with("\"golden\"", part), "m").engines.size() == 1);
    }
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
    test_older_bundles();
    test_depth();
    return failures == 0 ? 0 : 1;
}
