// What a manifest must be, and what is refused before anything is loaded.
#include <string>

#include "check.hpp"
#include "manifest.hpp"
#include "preflight.hpp"
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
        {"2cf24dba", "2CF24DBA", "sha256 of"},
        {"\"size\": 5", "\"size\": -5", "size = -5"},
        {"\"max_abs_err\": 0.001", "\"max_abs_err\": \"x\"", "no number"},
        {"{\"format\"", "[\"format\"", "manifest cannot be read"},
        {"\"targets\": [\"SM86\"", "\"targets\": [86", "no texts"},
    };
    for (const auto& one : broken)
        CHECK_THROWS(parse_manifest(with(one.from, one.to), "m"), SAVE_DETAIL_BUNDLE, one.part);
    CHECK_THROWS(parse_manifest("", "m"), SAVE_DETAIL_BUNDLE, "manifest cannot be read");
    CHECK_THROWS(parse_manifest(std::string(500'000, '['), "m"), SAVE_DETAIL_BUNDLE, "cannot be read");
    CHECK_THROWS(read_manifest("no/such/folder"), SAVE_DETAIL_BUNDLE, "not a bundle");
}

Bytes engine_bytes() {
    Bytes bytes(100, 7);
    const std::string magic = "vtrt";
    std::copy(magic.begin(), magic.end(), bytes.begin());
    std::copy(magic.begin(), magic.end(), bytes.begin() + 28);
    for (std::size_t i = 16; i < 24; ++i) bytes[i] = 0;
    bytes[16] = 100;
    bytes[24] = 1, bytes[25] = 7, bytes[26] = 1, bytes[27] = 116;
    return bytes;
}

std::string hex32(const Bytes& bytes) {
    std::string text;
    for (std::size_t i = 0; i < 32; ++i) {
        char two[3];
        std::snprintf(two, sizeof two, "%02x", bytes[i]);
        text += two;
    }
    return text;
}

void test_preflight() {
    const Manifest manifest = parse_manifest(sample_manifest(), "m");
    EngineEntry entry = manifest.engines[0];
    const Bytes good = engine_bytes();
    entry.header = hex32(good);
    check_header(entry, good, 100);
    CHECK_THROWS(check_header(entry, good, 99), SAVE_DETAIL_BUNDLE, "100 bytes");
    CHECK_THROWS(check_header(entry, Bytes(good.begin(), good.begin() + 9), 9), SAVE_DETAIL_BUNDLE,
        "9 bytes");
    Bytes other = good;
    other[26] = 2;
    CHECK_THROWS(check_header(entry, other, 100), SAVE_DETAIL_BUNDLE, "begins");
    entry.header = hex32(other);
    CHECK_THROWS(check_header(entry, other, 100), SAVE_DETAIL_BUNDLE, "built with version 1.7.2.116");
    other[0] = 'x';
    entry.header = hex32(other);
    CHECK_THROWS(check_header(entry, other, 100), SAVE_DETAIL_BUNDLE, "no engine of TensorRT-RTX");

    check_library(entry, "1.7.1.116", "linux-x86_64");
    CHECK_THROWS(check_library(entry, "1.7.2.1", "linux-x86_64"), SAVE_DETAIL_ENGINE, "another version");
    CHECK_THROWS(check_library(entry, "1.7.1.116", "linux-aarch64"), SAVE_DETAIL_ENGINE, "another system");
    entry.version_compatible = true;
    check_library(entry, "1.8.0.0", "linux-x86_64");
    CHECK_THROWS(check_library(entry, "2.0.0.0", "linux-x86_64"), SAVE_DETAIL_ENGINE, "another version");
    check_target(entry, 8, 9);
    CHECK_THROWS(check_target(entry, 9, 0), SAVE_DETAIL_ENGINE, "SM90");
    entry.hardware_compatibility = "ampere_plus";
    check_target(entry, 9, 0);
    CHECK_THROWS(check_target(entry, 7, 5), SAVE_DETAIL_ENGINE, "SM75");
    CHECK_THROWS(engine_for(manifest, "tensorrt"), SAVE_DETAIL_ENGINE, "without an engine for tensorrt");
}

}  // namespace

int main() {
    test_manifest();
    test_preflight();
    return failures == 0 ? 0 : 1;
}
