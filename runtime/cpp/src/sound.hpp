// Sounds -> the one-second windows the network hears (save_deploy/data/audio.py).
#pragma once

#include <cstddef>
#include <vector>

#include "save_runtime.h"

namespace save_core {

constexpr int kMinRateHz = 1'000;
constexpr int kMaxRateHz = 768'000;
// Floating-point files may go over 1; integers that nobody divided go over this within a whisper.
// MAX_PEAK in runtime/inputs.py.
constexpr float kMaxPeak = 16.0F;
constexpr std::size_t kStepSamples = 15'360;  // 0.96 s, the distance of two examples

// Throws Error for a channel count or rate out of range.
void check_format(int n_channels, int rate_hz);

// Throws Error for missing samples, a channel count or rate out of range.
void check_sound(const save_sound& sound);

// Throw Error for a second of SAVE_WINDOW_SAMPLES that is not finite or far above 1, and for n
// embeddings that are not finite: a mask of them would say nothing.
void check_window(const float* window);
void check_embeddings(const float* embeddings, std::size_t n);

// The channels of samples begin .. end as one (downmix.hpp), at the rate of the sound. Throws Error
// when one of them is not finite.
std::vector<float> mono(const save_sound& sound, std::size_t begin, std::size_t end);

// How many samples n samples at rate_hz become at 16 kHz.
std::size_t resampled_size(std::size_t n, int rate_hz);

// Samples begin .. begin+count of the sound at 16 kHz, those of the whole sound resampled bit for bit;
// only what they need of it is read.
std::vector<float> resampled(const save_sound& sound, std::size_t begin, std::size_t count);

// 16000 samples into `window`: second `index` as AVSBench counts them (data/audio.py: second), and
// the second from start_s on, silent after the end (runtime/stream.py: of a video).
void second(const save_sound& sound, int index, float* window);
void second_at(const save_sound& sound, double start_s, float* window);

}  // namespace save_core
