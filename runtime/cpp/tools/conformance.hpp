// The conformance pack: files every client must turn into the same tensors (export/golden.py).
#pragma once

#include <string>

#include "manifest.hpp"
#include "save_runtime.h"

namespace save_tools {

struct Conformed {
    int n_cases = 0;
    double waveform_err = 0, embedding_err = 0, logits_err = 0;  // largest absolute errors
    double mask_agreement = 1;  // IoU over all pixels that are not too near the threshold to tell
};

// Every case: file -> image -> embedding -> logits -> mask. Throws Error(PARITY) naming the first
// case and stage that differs, Error(BUNDLE) when the pack itself is damaged.
Conformed check_conformance(
    save_runtime* runtime, const std::string& folder, const save_core::Manifest& manifest);

}  // namespace save_tools
