// The two graphs of a bundle: the audio side runs once per second, the model once per frame.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "save_runtime.h"
#include "session.hpp"

namespace save_core {

class Pipeline {
public:
    // Manifest, files, engine, then the graphs: what is cheap to refuse is refused first.
    Pipeline(const std::string& folder, const save_params& params);

    const Manifest& manifest() const { return manifest_; }
    const std::string& folder() const { return folder_; }
    save_info info() const;
    // Above it a pixel sounds.
    float threshold_logit() const { return threshold_logit_; }

    // waveform: 16000 samples; embedding: 128 floats.
    void embed(const float* waveform, float* embedding);
    // images (n,S,S,3), embeddings (n,128) -> logits (n,S,S); n of any size.
    void run(const std::uint8_t* const* images, const float* embeddings, int n, float* logits);
    // Frames of any size, resized first.
    void infer(const save_frame* frames, const float* embeddings, int n, float* logits);

private:
    std::string folder_;
    Manifest manifest_;
    int threads_;
    float threshold_logit_;
    std::mutex mutex_;
    std::unique_ptr<Session> audio_, model_;
};

// The golden samples (runtime/verify.py). Throws Error(PARITY) after filling `found`.
void self_test(Pipeline& pipeline, save_parity& found);

}  // namespace save_core
