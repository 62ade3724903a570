// Sounds -> the one-second windows the network hears (save_deploy/data/audio.py).
#pragma once

#include <cstddef>
#include <vector>

#include "save_runtime.h"

namespace save_core {

constexpr int kMinRateHz = 1'000;
constexpr int kMaxRateHz = 768'000;
constexpr std::size_t kStepSamples = 15'360;  // 0.96 s, the distance of two examples

// Throws Error for missing samples, a channel count or rate out of range, NaN and infinity.
void check_sound(const save_sound& sound);

// Mean of the channels: (n_frames,), at the rate of the sound.
std::vector<float> mono(const save_sound& sound);

// How many samples n samples at rate_hz become at 16 kHz.
std::size_t resampled_size(std::size_t n, int rate_hz);

// Samples begin .. begin+count of the sound resampled to 16 kHz.
std::vector<float> resampled(
    const std::vector<float>& samples, int rate_hz, std::size_t begin, std::size_t count);

// Second `index`, 16000 samples into `window`.
void second(const save_sound& sound, int index, float* window);

}  // namespace save_core
