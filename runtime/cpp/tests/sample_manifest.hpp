// A small valid manifest, to be broken by the tests.
#pragma once

#include <string>

inline std::string sample_manifest() {
    const std::string record =
        R"({"sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", "size": 5})";
    return R"({"format": "save-deploy-bundle", "format_version": 1,
 "config": {"name": "vit_t", "res": 64}, "precision": {"precision": "fp32"},
 "graphs": {
  "model": {"file": "model.onnx",
   "inputs": [{"name": "image", "dtype": "uint8", "shape": [1, 64, 64, 3], "meaning": ""},
              {"name": "audio_embedding", "dtype": "float32", "shape": [1, 128], "meaning": ""}],
   "outputs": [{"name": "mask_logits", "dtype": "float32", "shape": [1, 1, 64, 64], "meaning": ""}]},
  "audio": {"file": "audio.onnx",
   "inputs": [{"name": "waveform", "dtype": "float32", "shape": [1, 16000], "meaning": ""}],
   "outputs": [{"name": "audio_embedding", "dtype": "float32", "shape": [1, 128], "meaning": ""}]}},
 "preprocessing": {
  "frame": {"color": "RGB", "dtype": "uint8", "layout": "NHWC", "resize": "square",
            "interpolation": "bilinear_antialias", "normalisation": "in the graph"},
  "sound": {"sample_rate_hz": 16000, "channels": "mean", "window_samples": 16000,
            "window_step_s": 0.96, "short": "completed with silence"},
  "mask": {"threshold_logit": 0.0, "resize": "bilinear on logits to the frame size"}},
 "golden": {"n": 2, "audio_embedding_tolerance": 0.001,
            "budget": {"max_abs_err": 0.001, "min_agreement": 0.9999}},
 "engines": [{"file": "model.rtx.plan", "library": "tensorrt_rtx", "library_version": "1.7.1.116",
   "targets": ["SM86", "SM89"], "hardware_compatibility": "none", "version_compatible": false,
   "os": "linux-x86_64", "gpu": null, "driver": null, "cuda": null,
   "onnx_sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
   "onnx_data_sha256": null, "engine_bytes": 5, "activation_bytes": 1048576, "weights_bytes": 1048576, "header": "00",
   "options": {"strip_weights": false}, "receipt": {}}],
 "conformance": {"waveform": "model.onnx", "audio_embedding": "model.onnx",
   "mask_logits": "model.onnx", "logits_step": 1,
   "tolerances": {"waveform": 1e-5, "audio_embedding": 1e-4, "mask_logits": null,
                  "min_agreement": 0.995},
   "cases": [{"name": "a", "frame": "model.onnx", "sound": "model.onnx", "mask": "model.onnx",
              "image_sha256": ""}]},
 "files": {"model.onnx": )" +
           record + R"(, "audio.onnx": )" + record + R"(, "model.rtx.plan": )" + record +
           R"(, "golden/image.npy": )" + record + R"(, "golden/waveform.npy": )" + record +
           R"(, "golden/audio_embedding.npy": )" + record + R"(, "golden/mask_logits.npy": )" +
           record + "}}";
}
