#include "compare.hpp"

#include <algorithm>
#include <cmath>

namespace save_core {

double largest_difference(const float* a, const float* b, std::size_t n) {
    double worst = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
        const double d = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!std::isfinite(d)) return d;
        worst = std::max(worst, d);
    }
    return worst;
}

double scale_of(const float* values, std::size_t n) {
    double largest = 1.0;
    for (std::size_t i = 0; i < n; ++i)
        largest = std::max(largest, std::fabs(static_cast<double>(values[i])));
    return largest;
}

bool is_within(double difference, double tolerance) {
    return std::isfinite(difference) && difference <= tolerance;
}

}  // namespace save_core
