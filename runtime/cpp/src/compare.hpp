// Largest differences of arrays, for what decides whether results agree.
#pragma once

#include <cstddef>

namespace save_core {

// Largest absolute difference. One that is not finite (NaN, infinity, on either side) is returned at
// once: a maximum would lose NaN, which is larger and smaller than nothing.
double largest_difference(const float* a, const float* b, std::size_t n);

// Largest absolute value, 1 at least: what a relative tolerance is multiplied with.
double scale_of(const float* values, std::size_t n);

// Finite and not above the tolerance.
bool is_within(double difference, double tolerance);

}  // namespace save_core
