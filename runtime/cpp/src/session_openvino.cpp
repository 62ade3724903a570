// OpenVINO's CPU device, set up as runtime/session/openvino.py does: one stream and float32
// arithmetic, because its own default on CPUs with bf16 instructions is bf16.
#include <cstring>
#include <filesystem>
#include <new>
#include <openvino/openvino.hpp>

#include "error.hpp"
#include "files.hpp"
#include "kept.hpp"
#include "npy.hpp"
#include "session.hpp"
#include "sha256.hpp"

namespace save_core {
namespace {

// As in runtime/session/open.py: a cache of larger models would take gigabytes and save only seconds.
constexpr std::uint64_t kCachedBytes = 1'500'000'000;

ov::element::Type element_of(const TensorSpec& spec) {
    return spec.dtype == "float32" ? ov::element::f32 : ov::element::u8;
}

ov::Shape shape_of(const TensorSpec& spec) {
    ov::Shape shape;
    for (const std::int64_t d : spec.shape) shape.push_back(static_cast<std::size_t>(d));
    return shape;
}

// Shapes that the graph leaves open are looked at after every run.
void check(const std::vector<ov::Output<const ov::Node>>& ports, const std::vector<TensorSpec>& specs,
    const std::string& path) {
    bool same = ports.size() == specs.size();
    for (const TensorSpec& spec : specs) {
        bool found = false;
        for (const auto& port : ports)
            found = found || (port.get_names().count(spec.name) == 1 &&
                                 port.get_element_type() == element_of(spec) &&
                                 port.get_partial_shape().compatible(ov::PartialShape(shape_of(spec))));
        same = same && found;
    }
    if (same) return;
    std::string expected;
    for (const TensorSpec& spec : specs) expected += spec.name + " " + spec.dtype + " " + shown(spec.shape) + "; ";
    throw Error(SAVE_DETAIL_BUNDLE, "graph does not fit its manifest", printable(path), expected,
        "copy the bundle again, or export it again");
}

std::string hashed(const std::string& text) { return sha256_of(text.data(), text.size()).substr(0, 16); }

struct Compiled {
    std::shared_ptr<const Kept> kept;  // read by the model, so it is destroyed after it
    ov::CompiledModel model;
};

// The kept model; without one `model` is empty.
Compiled imported(ov::Core& core, const std::string& place, const ov::AnyMap& config) {
    Compiled found{read_kept(place), {}};
    if (found.kept == nullptr) return found;
    try {
        const ov::Tensor blob(ov::element::u8, ov::Shape{found.kept->size}, found.kept->file.data());
        found.model = core.import_model(blob, "CPU", config);
    } catch (const std::exception&) {  // compiled anew
        return {};
    }
    return found;
}

// Taken from the cache folder, or put there: see kept.hpp.
Compiled compiled(
    ov::Core& core, const std::string& path, const ov::AnyMap& config, const SessionOptions& options) {
    std::uint64_t size = file_size(path);
    for (const std::string& name : options.weights)
        size += file_size(joined(std::filesystem::path(path).parent_path().string(), name));
    const auto compile = [&] {
        const Gathered graph(path, options.weights);
        return core.compile_model(graph.path(), "CPU", config);
    };
    if (options.cache_dir.empty() || size > kCachedBytes) return {nullptr, compile()};
    std::string told = ov::get_openvino_version().buildNumber;
    told += " " + core.get_property("CPU", ov::device::full_name);
    for (const std::string& name : core.get_property("CPU", ov::device::capabilities)) told += " " + name;
    told += " " + std::to_string(options.threads);
    const std::string place = joined(options.cache_dir, "c-" + hashed(told) + ".blob");
    if (Compiled found = imported(core, place, config); found.model) return found;
    ov::CompiledModel model = compile();
    if (!options.keeps) return {nullptr, model};
    keep(place, [&](std::ostream& stream) { model.export_model(stream); });
    Compiled shared = imported(core, place, config);  // it shares its weights with other processes
    return shared.model ? shared : Compiled{nullptr, model};
}

// What OpenVINO throws, as our error; ours and a lack of memory pass.
template <class F>
void guarded(const std::string& path, F&& call) {
    try {
        call();
    } catch (const Error&) {
        throw;
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& error) {
        throw Error(SAVE_DETAIL_BACKEND, "openvino cannot run " + path,
            printable(last_line(error.what()), 300), "a working graph",
            "use the backend onnxruntime, or the version of OpenVINO in the manifest");
    }
}

class OpenVinoSession final : public Session {
public:
    OpenVinoSession(const std::string& path, const GraphSpec& spec, const SessionOptions& options)
        : spec_(spec) {
        ov::AnyMap config{ov::hint::inference_precision(ov::element::f32),
            ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY), ov::num_streams(1),
            ov::inference_num_threads(options.threads)};
        guarded(path, [&] {
            compiled_ = compiled(core_, path, config, options);
            const ov::CompiledModel& model = compiled_.model;
            check(model.inputs(), spec.inputs, path);
            check(model.outputs(), spec.outputs, path);
            request_ = compiled_.model.create_infer_request();
        });
    }

    void run(const std::vector<const void*>& inputs, float* output) override {
        guarded(spec_.file, [&] {
            for (std::size_t i = 0; i < inputs.size(); ++i) {
                const TensorSpec& spec = spec_.inputs[i];
                // OpenVINO does not write to inputs; its interface has no const
                request_.set_tensor(spec.name,
                    ov::Tensor(element_of(spec), shape_of(spec), const_cast<void*>(inputs[i])));
            }
            request_.infer();
            const TensorSpec& spec = spec_.outputs[0];
            const ov::Tensor found = request_.get_tensor(spec.name);
            if (found.get_shape() != shape_of(spec))
                throw Error(SAVE_DETAIL_BUNDLE, "the graph gives another " + spec.name + " than its manifest",
                    found.get_shape().to_string(), shown(spec.shape),
                    "copy the bundle again, or export it again");
            std::memcpy(output, found.data<float>(), bytes_of(spec));
        });
    }

    const char* backend() const override { return "openvino"; }

private:
    GraphSpec spec_;
    ov::Core core_;
    Compiled compiled_;
    ov::InferRequest request_;
};

}  // namespace

std::unique_ptr<Session> open_openvino(
    const std::string& path, const GraphSpec& spec, const SessionOptions& options) {
    return std::make_unique<OpenVinoSession>(path, spec, options);
}

}  // namespace save_core
