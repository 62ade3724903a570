#include "pipeline.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu.hpp"
#include "engine_check.hpp"
#include "error.hpp"
#include "files.hpp"
#include "kept.hpp"
#include "onnx_files.hpp"
#include "resize.hpp"
#include "sound.hpp"

namespace save_core {
namespace {

constexpr const char* kCpuBackends[] = {"openvino", "onnxruntime"};

bool has(const std::string& backend) {
    const auto& names = compiled_backends();
    return std::find(names.begin(), names.end(), backend) != names.end();
}

bool is_engine(const std::string& backend) {
    return backend == "tensorrt" || backend == "tensorrt_rtx";
}

bool on_gpu(const std::string& backend) {
    return is_engine(backend) || backend == "onnxruntime_cuda";
}

std::string all_backends() {
    std::string text;
    for (const std::string& name : compiled_backends()) text += (text.empty() ? "" : ", ") + name;
    return text.empty() ? "none" : text;
}

std::string cpu_backend(const Manifest& manifest) {
    return preferred_cpu_backend(manifest.precision, has_int8_dot_product(), compiled_backends());
}

std::string chosen_backend(std::string asked, const Manifest& manifest) {
    std::replace(asked.begin(), asked.end(), '-', '_');  // tensorrt-rtx, as Python spells it, too
    if (asked == "auto") return cpu_backend(manifest);
    const bool known = on_gpu(asked) || std::find(std::begin(kCpuBackends),
                                               std::end(kCpuBackends), asked) != std::end(kCpuBackends);
    if (!known && asked != "onnxruntime_tensorrt")  // which Python alone has
        throw Error(SAVE_DETAIL_ARGUMENT, "unknown backend", printable(asked, 40),
            "auto, openvino, onnxruntime, onnxruntime-cuda, tensorrt, tensorrt-rtx");
    if (!has(asked))
        throw Error(SAVE_DETAIL_BACKEND, "backend is not compiled in", asked, all_backends(),
            "build save_runtime with it; cmake prints what is missing");
    return asked;
}

std::unique_ptr<Session> open_graph(const std::string& backend, const std::string& folder,
    const Manifest& manifest, const GraphSpec& graph, SessionOptions options) {
    const std::string path = joined(folder, graph.file);
    options.weights = weight_files(path, manifest.files);
    options.small_weights = manifest.small_weights;
    // as runtime/session/open.py names it: the compiled model belongs to this graph and its weights
    if (!options.cache_dir.empty())
        options.cache_dir = joined(joined(options.cache_dir, "openvino"),
            content_of(manifest, graph.file, options.weights).substr(0, 16));
#if defined(SAVE_WITH_OPENVINO)
    if (backend == "openvino") return open_openvino(path, graph, options);
#endif
#if defined(SAVE_WITH_ONNXRUNTIME)
    if (backend == "onnxruntime") return open_onnxruntime(path, graph, options);
    if (backend == "onnxruntime_cuda") return open_onnxruntime_cuda(path, graph, options);
#endif
    throw Error(SAVE_DETAIL_BACKEND, "backend is not compiled in", backend, all_backends());
}

// The engine that may run here, before the files of the bundle are read through: that takes longest.
const EngineEntry* chosen_engine(const std::string& backend, const Manifest& manifest,
    const std::string& folder, const save_params& params) {
    if (!is_engine(backend)) return nullptr;
#if defined(SAVE_WITH_TENSORRT)
    return &choose_engine(
        manifest, folder, backend, probe_machine(params.device), params.verify_files != 0,
        params.trust_engine != 0);
#else
    (void)manifest, (void)folder, (void)params;
    return nullptr;
#endif
}

}  // namespace

Pipeline::Pipeline(const std::string& folder, const save_params& params)
    : folder_(folder), manifest_(read_manifest(folder)) {
    if (params.threads < 0 || params.threads > 4096)
        throw Error(SAVE_DETAIL_ARGUMENT, "wrong number of threads", std::to_string(params.threads),
            "0 to 4096");
    threads_ = params.threads > 0 ? params.threads : default_threads();
    const float threshold = params.threshold > 0.0F ? params.threshold : 0.5F;
    threshold_logit_ = std::log(threshold / (1.0F - threshold));
    const std::string asked = params.backend == nullptr ? "auto" : params.backend;
    const std::string backend = chosen_backend(asked, manifest_);
    const std::string audio_backend = on_gpu(backend) ? cpu_backend(manifest_) : backend;
    const EngineEntry* engine = chosen_engine(backend, manifest_, folder, params);
    const Stamps stamps = stamps_of(manifest_, folder);
    const std::string cache = params.cache_dir == nullptr ? "" : params.cache_dir;
    const auto marks =
        verify_files(manifest_, folder, params.verify_files != 0, on_gpu(backend) ? "" : cache);
    const SessionOptions options{threads_, params.device, cache, params.verify_files != 0, {}};
#if defined(SAVE_WITH_TENSORRT)
    if (engine != nullptr) {
        SessionOptions own = options;
        if (!own.cache_dir.empty())  // as runtime/session/open.py names it: it belongs to this very file
            own.cache_dir = joined(joined(own.cache_dir, backend),
                manifest_.files.at(engine->file).sha256.substr(0, 16));
        model_ = open_tensorrt(joined(folder, engine->file), manifest_.model, *engine, own);
    }
#endif
    if (engine == nullptr) model_ = open_graph(backend, folder, manifest_, manifest_.model, options);
    audio_ = open_graph(audio_backend, folder, manifest_, manifest_.audio, options);
    if (params.verify_files != 0) require_unchanged(stamps, manifest_, folder);
    for (const auto& [name, mark] : marks) {  // hard links, which opening may make, change a file's stamp
        const std::string path = joined(folder, name);
        if (mark == mark_of_check(cache, path, manifest_.files.at(name).sha256, stamp_of(path)))
            make_mark(mark);
    }
}

save_info Pipeline::info() const {
    return {manifest_.res, manifest_.batch, threads_, manifest_.model_name.c_str(),
        manifest_.precision.c_str(), model_->backend(), audio_->backend()};
}

void Pipeline::embed(const float* waveform, float* embedding) {
    check_window(waveform);
    const std::lock_guard<std::mutex> lock(mutex_);
    audio_->run({waveform}, embedding);
}

void Pipeline::run(
    const std::uint8_t* const* images, const float* embeddings, int n, float* logits) {
    const std::size_t batch = static_cast<std::size_t>(manifest_.batch);
    const std::size_t side = static_cast<std::size_t>(manifest_.res);
    const std::size_t total = static_cast<std::size_t>(n), pixels = side * side;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (batch == 1) {
        for (std::size_t i = 0; i < total; ++i)
            model_->run({images[i], embeddings + i * SAVE_EMBEDDING_SIZE}, logits + i * pixels);
        return;
    }
    std::vector<std::uint8_t> image(batch * pixels * 3);
    std::vector<float> heard(batch * SAVE_EMBEDDING_SIZE), found(batch * pixels);
    for (std::size_t start = 0; start < total; start += batch) {
        for (std::size_t i = 0; i < batch; ++i) {
            const std::size_t from = std::min(start + i, total - 1);
            std::memcpy(&image[i * pixels * 3], images[from], pixels * 3);
            std::copy_n(embeddings + from * SAVE_EMBEDDING_SIZE, SAVE_EMBEDDING_SIZE,
                &heard[i * SAVE_EMBEDDING_SIZE]);
        }
        model_->run({image.data(), heard.data()}, found.data());
        std::copy_n(found.begin(), std::min(batch, total - start) * pixels, logits + start * pixels);
    }
}

void Pipeline::infer(const save_frame* frames, const float* embeddings, int n, float* logits) {
    const std::size_t side = static_cast<std::size_t>(manifest_.res), pixels = side * side;
    const std::size_t total = static_cast<std::size_t>(n), batch = static_cast<std::size_t>(manifest_.batch);
    std::for_each(frames, frames + total, check_frame);  // before anything is computed
    check_embeddings(embeddings, total);
    // one batch at a time: memory does not grow with n
    std::vector<std::vector<std::uint8_t>> resized(std::min(batch, total));
    std::vector<const std::uint8_t*> images(resized.size());
    for (std::size_t start = 0; start < total; start += batch) {
        const std::size_t taken = std::min(batch, total - start);
        for (std::size_t i = 0; i < taken; ++i) {
            const save_frame& frame = frames[start + i];
            const bool fits = frame.width == manifest_.res && frame.height == manifest_.res &&
                              (frame.row_bytes == 0 || frame.row_bytes == 3 * side);
            if (!fits) {
                resized[i].resize(pixels * 3);
                resize_frame(frame, manifest_.res, resized[i].data());
            }
            images[i] = fits ? frame.rgb : resized[i].data();
        }
        run(images.data(), embeddings + start * SAVE_EMBEDDING_SIZE, static_cast<int>(taken),
            logits + start * pixels);
    }
}

}  // namespace save_core
