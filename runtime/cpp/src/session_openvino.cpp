// OpenVINO's CPU device, set up as runtime/session/openvino.py does: one stream and float32
// arithmetic, because its own default on CPUs with bf16 instructions is bf16.
#include <cstring>
#include <new>
#include <openvino/openvino.hpp>

#include "error.hpp"
#include "session.hpp"

namespace save_core {
namespace {

ov::element::Type element_of(const TensorSpec& spec) {
    return spec.dtype == "float32" ? ov::element::f32 : ov::element::u8;
}

ov::Shape shape_of(const TensorSpec& spec) {
    ov::Shape shape;
    for (const std::int64_t d : spec.shape) shape.push_back(static_cast<std::size_t>(d));
    return shape;
}

void check(const ov::Output<const ov::Node>& port, const TensorSpec& spec, const std::string& path) {
    const bool same = port.get_element_type() == element_of(spec) && port.get_partial_shape().is_static() &&
                      port.get_shape() == shape_of(spec);
    if (!same)
        throw Error(SAVE_DETAIL_BUNDLE, "graph does not fit its manifest", path + ": " + spec.name,
            spec.dtype + " as in the manifest", "copy the bundle again, or export it again");
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
        if (!options.cache_dir.empty()) config.insert(ov::cache_dir(options.cache_dir));
        guarded(path, [&] {
            model_ = core_.compile_model(path, "CPU", config);
            for (const TensorSpec& input : spec.inputs) check(model_.input(input.name), input, path);
            check(model_.output(spec.outputs[0].name), spec.outputs[0], path);
            request_ = model_.create_infer_request();
            output_ = request_.get_tensor(spec.outputs[0].name);
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
        });
        std::memcpy(output, output_.data<float>(), bytes_of(spec_.outputs[0]));
    }

    const char* backend() const override { return "openvino"; }

private:
    GraphSpec spec_;
    ov::Core core_;
    ov::CompiledModel model_;
    ov::InferRequest request_;
    ov::Tensor output_;
};

}  // namespace

std::unique_ptr<Session> open_openvino(
    const std::string& path, const GraphSpec& spec, const SessionOptions& options) {
    return std::make_unique<OpenVinoSession>(path, spec, options);
}

}  // namespace save_core
