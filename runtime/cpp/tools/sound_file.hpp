// Sound files that libsndfile reads -> one channel of float samples.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "files.hpp"
#include "save_runtime.h"

namespace save_tools {

struct SoundFile {
    std::vector<float> samples;  // (n,) in [-1,1], the channels mixed (downmix.hpp)
    int n_channels = 1, rate_hz = 0;

    std::size_t n_frames() const { return samples.size() / static_cast<std::size_t>(n_channels); }
    double seconds() const { return static_cast<double>(n_frames()) / rate_hz; }
    save_sound view() const { return {samples.data(), n_frames(), n_channels, rate_hz}; }
};

// Throw Error(SAVE_DETAIL_DATA) for a foreign, damaged or empty file. Of a long one at least `seconds`
// from its start are read, not the rest.
SoundFile read_sound(
    const std::string& path, double seconds = std::numeric_limits<double>::infinity());
SoundFile decode_sound(const save_core::Bytes& bytes, const std::string& name);

// Nothing is heard in its first second (save_deploy/data/audio.py).
bool is_silent(const SoundFile& sound);

}  // namespace save_tools
