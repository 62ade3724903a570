// save-infer: verify, run and bench a bundle without Python. Exit codes as those of save-deploy.
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "conformance.hpp"
#include "error.hpp"
#include "files.hpp"
#include "image_file.hpp"
#include "npy.hpp"
#include "output_file.hpp"
#include "resize.hpp"
#include "save_runtime.hpp"
#include "sound_file.hpp"

namespace {

using save_core::Error;

constexpr const char* kUsage =
    "usage: save-infer verify BUNDLE\n"
    "       save-infer run BUNDLE FRAME SOUND -o MASK.png [--logits FILE.npy] [--tensors DIR]\n"
    "                                                     [--any-sound]\n"
    "       save-infer bench BUNDLE [--rounds N]\n"
    "options: --backend auto|openvino|onnxruntime|tensorrt|tensorrt_rtx   --threads N\n"
    "         --device N   --cache DIR   --no-hashes   --trust-engine   --threshold P (0.5)\n"
    "       save-infer --version\n"
    "\n"
    "verify  files against their hashes, golden samples, conformance pack\n"
    "run     mask what sounds in one PNG or JPEG, hearing the first second of a wav, flac or ogg;\n"
    "        --tensors writes what the network saw and gave (.npy), --any-sound accepts silence and\n"
    "        less than a second\n"
    "bench   raw milliseconds per call as JSON on stdout\n"
    "exit    0 fine, 1 usage or input, 2 results differ, 3 not available on this machine\n";

constexpr double kMinSeconds = 0.025;      // one window of the spectrum
constexpr double kExampleSeconds = 0.975;  // what the network hears at once
constexpr double kReadSeconds = 2.0;  // what follows sounds in the resampled end of the first second
constexpr int kWarmUp = 3;
constexpr const char* kTensorFiles[] = {
    "image.npy", "waveform.npy", "audio_embedding.npy", "mask_logits.npy"};

struct Arguments {
    std::vector<std::string> names;              // without options
    std::map<std::string, std::string> options;  // "--rounds" -> "20"; flags -> ""
};

[[noreturn]] void misused(const std::string& got) {
    throw Error(SAVE_DETAIL_ARGUMENT, "wrong command line", save_core::printable(got), "",
        "save-infer --help");
}

Arguments parse(int argc, char** argv) {
    static const std::map<std::string, bool> takes_value = {{"-o", true}, {"--logits", true},
        {"--tensors", true}, {"--any-sound", false}, {"--rounds", true}, {"--backend", true},
        {"--threads", true}, {"--device", true}, {"--cache", true}, {"--no-hashes", false},
        {"--trust-engine", false}, {"--threshold", true}};
    Arguments found;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        if (word.empty() || word[0] != '-') {
            found.names.push_back(word);
            continue;
        }
        const auto option = takes_value.find(word);
        if (option == takes_value.end()) misused("unknown option " + word);
        if (option->second && i + 1 == argc) misused(word + " without a value");
        found.options[word] = option->second ? argv[++i] : "";
    }
    for (const char* output : {"-o", "--logits"})
        if (const auto given = found.options.find(output); given != found.options.end())
            given->second = save_core::file_name(given->second);
    return found;
}

int whole_number(const Arguments& arguments, const std::string& name, int standard) {
    const auto option = arguments.options.find(name);
    if (option == arguments.options.end()) return standard;
    char* end = nullptr;
    const long value = std::strtol(option->second.c_str(), &end, 10);
    if (option->second.empty() || *end != '\0' || value < 0 || value > 1'000'000)
        misused(name + " " + option->second);
    return static_cast<int>(value);
}

float probability(const Arguments& arguments, const std::string& name, float standard) {
    const auto option = arguments.options.find(name);
    if (option == arguments.options.end()) return standard;
    char* end = nullptr;
    const float value = std::strtof(option->second.c_str(), &end);
    if (option->second.empty() || *end != '\0' || !(value > 0.0F && value < 1.0F))
        misused(name + " " + option->second);
    return value;
}

save::Runtime open_bundle(const Arguments& arguments) {
    save_params params = save_params_default();
    const auto backend = arguments.options.find("--backend");
    if (backend != arguments.options.end()) params.backend = backend->second.c_str();
    const auto cache = arguments.options.find("--cache");
    if (cache != arguments.options.end()) params.cache_dir = cache->second.c_str();
    params.threads = whole_number(arguments, "--threads", 0);
    params.device = whole_number(arguments, "--device", 0);
    params.verify_files = arguments.options.count("--no-hashes") == 0 ? 1 : 0;
    params.threshold = probability(arguments, "--threshold", params.threshold);
    params.trust_engine = arguments.options.count("--trust-engine") == 0 ? 0 : 1;
    return save::Runtime(arguments.names.at(1), params);
}

double now_ms() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(now).count();
}

void verify(const Arguments& arguments) {
    if (arguments.names.size() != 2) misused("verify needs a bundle");
    const std::string& folder = arguments.names[1];
    const std::string shown = save_core::visible(folder);
    // with a cache, opening passes over files that stayed as they were
    if (arguments.options.count("--cache") == 1 && arguments.options.count("--no-hashes") == 0)
        save_core::verify_files(save_core::read_manifest(folder), folder, true);
    save::Runtime runtime = open_bundle(arguments);
    const save_parity parity = runtime.self_test();
    std::printf("%s: files intact, %d golden samples on %s, mask agreement %.5f, max abs logit error "
                "%.1e\n",
        shown.c_str(), parity.n_frames, runtime.info().backend, parity.mask_agreement,
        parity.max_abs_err);
    const save_core::Manifest manifest = save_core::read_manifest(folder);
    if (!manifest.conformance) {
        std::printf("%s: no conformance pack in this bundle\n", shown.c_str());
        return;
    }
    const save_tools::Conformed found =
        save_tools::check_conformance(runtime.c(), folder, manifest);
    std::printf("%s: %d conformance cases, images equal, waveform error %.1e, embedding error %.1e, "
                "logit error %.1e, decided mask agreement %.5f\n",
        shown.c_str(), found.n_cases, found.waveform_err, found.embedding_err, found.logits_err,
        found.mask_agreement);
}

void write_array(const std::string& path, const std::string& dtype,
    const std::vector<std::int64_t>& shape, const void* data) {
    const save_core::Bytes bytes = save_core::npy_bytes(dtype, shape, data);
    save_core::write_file(path, bytes.data(), bytes.size());
}

save_tools::SoundFile checked_sound(const std::string& path, bool any_sound) {
    const char* const cure = "add --any-sound";
    save_tools::SoundFile sound = save_tools::read_sound(path, kReadSeconds);
    const double shortest = any_sound ? kMinSeconds : kExampleSeconds;
    if (sound.seconds() < shortest)
        throw Error(SAVE_DETAIL_DATA, "sound is too short",
            std::to_string(sound.seconds()) + " s in " + path, std::to_string(shortest) + " s or more",
            any_sound ? "" : cure);
    if (!any_sound && save_tools::is_silent(sound))
        throw Error(SAVE_DETAIL_DATA, "sound is silent",
            "silence in the first second of " + path + ", which is what is heard",
            "something to hear", cure);
    return sound;
}

// Before any work: no output may replace an input or a file of the bundle.
void check_outputs(const Arguments& arguments) {
    std::vector<std::string> outputs;
    for (const char* option : {"-o", "--logits"})
        if (const auto found = arguments.options.find(option); found != arguments.options.end())
            outputs.push_back(found->second);
    if (const auto found = arguments.options.find("--tensors"); found != arguments.options.end())
        for (const char* name : kTensorFiles)
            outputs.push_back(save_core::joined(found->second, name));
    save_core::check_mask_name(arguments.options.at("-o"));
    for (const std::string& output : outputs) {
        for (const std::size_t input : {std::size_t{2}, std::size_t{3}})
            save_core::check_not_input(output, arguments.names[input]);
        save_core::check_not_of_bundle(output, arguments.names[1]);
    }
}

void run(const Arguments& arguments) {
    if (arguments.names.size() != 4 || arguments.options.count("-o") == 0)
        misused("run needs a bundle, a frame, a sound and -o MASK.png");
    check_outputs(arguments);
    const save_tools::Image frame = save_tools::read_image(arguments.names[2]);
    const save_tools::SoundFile sound =
        checked_sound(arguments.names[3], arguments.options.count("--any-sound") != 0);
    save::Runtime runtime = open_bundle(arguments);
    const int res = runtime.info().res;
    const save::Frame pixels{frame.pixels, frame.width, frame.height};
    const save::Sound samples{sound.samples, sound.rate_hz, sound.n_channels};
    const std::vector<float> heard = runtime.embed(samples);
    const std::vector<float> logits = runtime.infer(pixels, heard);
    const float threshold = probability(arguments, "--threshold", 0.5F);
    std::vector<std::uint8_t> mask(frame.pixels.size() / 3);
    save_core::mask_of_logits(logits.data(), res, frame.width, frame.height, mask.data(),
        std::log(threshold / (1.0F - threshold)));

    if (arguments.options.count("--logits") != 0)
        write_array(arguments.options.at("--logits"), "float32", {res, res}, logits.data());
    if (arguments.options.count("--tensors") != 0) {
        const std::string folder = arguments.options.at("--tensors");
        std::error_code error;
        std::filesystem::create_directories(folder, error);  // a failure shows when files are written
        const auto place = [&](int k) { return save_core::joined(folder, kTensorFiles[k]); };
        write_array(place(0), "uint8", {res, res, 3}, save::make_image(pixels, res).data());
        write_array(place(1), "float32", {SAVE_WINDOW_SAMPLES}, save::make_waveform(samples).data());
        write_array(place(2), "float32", {SAVE_EMBEDDING_SIZE}, heard.data());
        write_array(place(3), "float32", {res, res}, logits.data());
    }
    const std::string& out = arguments.options.at("-o");
    const save_core::Bytes png =
        save_tools::encode_png_gray(mask.data(), frame.width, frame.height);
    save_core::write_file(out, png.data(), png.size());
    std::size_t sounding = 0;
    for (const std::uint8_t value : mask) sounding += value != 0;
    std::printf("%s: %.1f%% of the picture sounds\n", save_core::visible(out).c_str(),
        100.0 * static_cast<double>(sounding) / static_cast<double>(mask.size()));
}

// A text of the manifest as JSON.
std::string quoted(const char* text) {
    return nlohmann::json(text).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

void print_list(const char* name, const std::vector<double>& values, const char* end) {
    std::printf("  \"%s\": [", name);
    for (std::size_t i = 0; i < values.size(); ++i)
        std::printf("%s%.4f", i == 0 ? "" : ", ", values[i]);
    std::printf("]%s\n", end);
}

void bench(const Arguments& arguments) {
    if (arguments.names.size() != 2) misused("bench needs a bundle");
    const int rounds = whole_number(arguments, "--rounds", 20);
    const std::string& folder = arguments.names[1];
    save::Runtime runtime = open_bundle(arguments);
    const save_info info = runtime.info();
    const std::int64_t n = save_core::read_manifest(folder).golden.n;
    const auto golden = [&](const char* name, const char* dtype, std::vector<std::int64_t> shape) {
        const std::string path = save_core::joined(folder, std::string("golden/") + name);
        save_core::Npy array = save_core::read_npy(path);
        save_core::expect(array, dtype, shape, path);
        return array;
    };
    const auto image = golden("image.npy", "uint8", {n, info.res, info.res, 3});
    const auto waveform = golden("waveform.npy", "float32", {n, SAVE_WINDOW_SAMPLES});

    // one call of the model graph, its inputs at network size; one call of the audio graph
    const std::size_t batch = static_cast<std::size_t>(info.batch), side = static_cast<std::size_t>(info.res);
    std::vector<save_frame> frames;
    std::vector<float> heard(batch * SAVE_EMBEDDING_SIZE), logits(batch * side * side);
    const save_sound sound{waveform.f32(), SAVE_WINDOW_SAMPLES, 1, SAVE_SAMPLE_RATE};
    for (std::size_t i = 0; i < batch; ++i) {
        frames.push_back({image.u8(i % static_cast<std::size_t>(n)), info.res, info.res, 0});
        save::check(save_embed(runtime.c(), &sound, 0, &heard[i * SAVE_EMBEDDING_SIZE]));
    }
    std::vector<double> model_ms, audio_ms;
    for (int i = -kWarmUp; i < rounds; ++i) {
        const double start = now_ms();
        save::check(save_infer_many(runtime.c(), frames.data(), heard.data(), info.batch, logits.data()));
        const double middle = now_ms();
        save::check(save_embed(runtime.c(), &sound, 0, heard.data()));
        const double end = now_ms();
        if (i < 0) continue;
        model_ms.push_back(middle - start);
        audio_ms.push_back(end - middle);
    }
    std::printf("{\n  \"version\": \"%s\", \"backend\": \"%s\", \"audio_backend\": \"%s\",\n"
                "  \"threads\": %d, \"batch\": %d, \"res\": %d, \"precision\": %s,\n",
        save_version(), info.backend, info.audio_backend, info.threads, info.batch, info.res,
        quoted(info.precision).c_str());
    print_list("model_ms", model_ms, ",");
    print_list("audio_ms", audio_ms, "");
    std::printf("}\n");
}

void command(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--help") == 0) {
        std::fputs(kUsage, stdout);
        return;
    }
    if (argc == 2 && std::strcmp(argv[1], "--version") == 0) {
        std::printf("save-infer %s (%s)\n", save_version(), save_backends());
        return;
    }
    const Arguments arguments = parse(argc, argv);
    const std::string verb = arguments.names.empty() ? "" : arguments.names[0];
    if (verb == "verify") verify(arguments);
    else if (verb == "run") run(arguments);
    else if (verb == "bench") bench(arguments);
    else misused(verb.empty() ? "no verb" : "verb " + verb);
}

// A full disk or a closed pipe shows when the text really leaves.
void flush_output() {
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
        throw Error(SAVE_DETAIL_DATA, "output cannot be written", std::strerror(errno), "",
            "look at what stdout leads to");
}

}  // namespace

int main(int argc, char** argv) {
    save_core::stop_cleanly();
    try {
        command(argc, argv);
        flush_output();
        return SAVE_OK;
    } catch (const save::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return error.status();
    } catch (const Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return error.status();
    } catch (const std::bad_alloc&) {
        std::fputs("not enough memory for this input\n  expected: less than this machine has\n", stderr);
        return SAVE_INPUT;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "save-infer: %s\n", save_core::visible(error.what()).c_str());
        return SAVE_INPUT;
    }
}
