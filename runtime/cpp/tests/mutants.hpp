// Small valid files of every kind, and ways to damage them.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "files.hpp"

namespace mutants {

std::vector<save_core::Bytes> pngs();  // RGB, palette, gray, 16 bits with and without alpha, interlaced
save_core::Bytes jpeg(bool progressive);
// PCM of so many bytes a sample, little endian.
save_core::Bytes wav(int rate, int channels, int bytes_per_sample, int n);

// One to four edits: bits, bytes, pieces cut, copied or put in; half of them near the start.
save_core::Bytes mutated(const save_core::Bytes& seed, std::mt19937& random);
// A PNG whose chunks say the right checksum again, so that a reader looks at what is in them.
save_core::Bytes with_right_checksums(save_core::Bytes png);

}  // namespace mutants
