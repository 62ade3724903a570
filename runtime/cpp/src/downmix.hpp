// Several channels of sound -> one, as FFmpeg mixes them (save_deploy/data/downmix.py).
#pragma once

#include <string>
#include <vector>

namespace save_core {

// Weights that sum to 1. names: of the channels as FFmpeg writes them (FL, FC, LFE ...), empty where
// only their number is known. A layout that FFmpeg has no matrix for is averaged.
std::vector<float> mono_weights(int n_channels, const std::vector<std::string>& names = {});

// n samples of every channel, interleaved -> n, at `mono`.
void to_mono(const float* samples, std::size_t n, const std::vector<float>& weights, float* mono);

// Names of the channels of a file: from libsndfile's channel map where it has one, else what its kind
// ("FLAC", "OGG") says; empty where nothing is known but their number.
std::vector<std::string> names_of_file(
    const std::string& kind, int n_channels, const std::vector<int>& map);

}  // namespace save_core
