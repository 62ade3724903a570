#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "error.hpp"

namespace save_core {
namespace {

// The triangle filter of one axis: output x is the sum of `count[x]` inputs from `first[x]` on.
struct Taps {
    std::vector<int> first, count;
    std::vector<double> weights;  // (out, stride)
    std::size_t stride = 0;
};

// Weights fall linearly from the center of the output pixel to one output (or input, when that is
// larger) pixel away, and are normalized to sum 1.
Taps triangle(int in, int out) {
    const double scale = static_cast<double>(in) / out;
    const double reach = std::max(scale, 1.0);
    Taps taps;
    taps.first.resize(static_cast<std::size_t>(out));
    taps.count.resize(static_cast<std::size_t>(out));
    taps.stride = static_cast<std::size_t>(std::ceil(reach)) * 2 + 1;
    taps.weights.assign(static_cast<std::size_t>(out) * taps.stride, 0.0);
    for (int x = 0; x < out; ++x) {
        const double center = (x + 0.5) * scale;
        const int begin = std::max(0, static_cast<int>(center - reach + 0.5));
        const int end = std::min(in, static_cast<int>(center + reach + 0.5));
        double* weights = taps.weights.data() + static_cast<std::size_t>(x) * taps.stride;
        double sum = 0.0;
        for (int i = 0; i < end - begin; ++i) {
            const double distance = std::fabs((i + begin - center + 0.5) * (1.0 / reach));
            weights[i] = distance < 1.0 ? 1.0 - distance : 0.0;
            sum += weights[i];
        }
        for (int i = 0; i < end - begin; ++i)
            if (sum != 0.0) weights[i] /= sum;
        taps.first[static_cast<std::size_t>(x)] = begin;
        taps.count[static_cast<std::size_t>(x)] = end - begin;
    }
    return taps;
}

// How a kind of value is summed and rounded back. 8-bit values: fixed point, 22 fractional bits leave
// room for 8 bits of pixel, a sign and one carry in 32 bits. Floats: in double.
template <class T>
struct Arithmetic;

template <>
struct Arithmetic<std::uint8_t> {
    using Sum = std::int32_t;
    static constexpr int kBits = 32 - 8 - 2;
    static constexpr Sum kStart = 1 << (kBits - 1);
    static Sum weight(double w) { return static_cast<Sum>(0.5 + w * (1 << kBits)); }
    static std::uint8_t rounded(Sum sum) {
        return static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255));
    }
};

template <>
struct Arithmetic<float> {
    using Sum = double;
    static constexpr Sum kStart = 0.0;
    static Sum weight(double w) { return w; }
    static float rounded(Sum sum) { return static_cast<float>(sum); }
};

template <class T>
std::vector<typename Arithmetic<T>::Sum> weights_of(const Taps& taps) {
    std::vector<typename Arithmetic<T>::Sum> weights;
    weights.reserve(taps.weights.size());
    for (const double w : taps.weights) weights.push_back(Arithmetic<T>::weight(w));
    return weights;
}

// Channels pixels of a picture, rows without gaps.
template <class T, std::size_t Channels>
struct Picture {
    std::size_t width, height;
    std::vector<T> values;
};

template <class T, std::size_t Channels>
Picture<T, Channels> to_width(const Picture<T, Channels>& in, int width) {
    if (in.width == static_cast<std::size_t>(width)) return in;  // a pass would round
    using Rule = Arithmetic<T>;
    const Taps taps = triangle(static_cast<int>(in.width), width);
    const auto weights = weights_of<T>(taps);
    Picture<T, Channels> out{static_cast<std::size_t>(width), in.height, {}};
    out.values.resize(out.width * out.height * Channels);
    T* place = out.values.data();
    for (std::size_t y = 0; y < out.height; ++y)
        for (std::size_t x = 0; x < out.width; ++x, place += Channels) {
            const T* pixel = &in.values[(y * in.width + static_cast<std::size_t>(taps.first[x])) * Channels];
            const auto* weight = &weights[x * taps.stride];
            typename Rule::Sum sums[Channels];
            std::fill(sums, sums + Channels, Rule::kStart);
            for (int i = 0; i < taps.count[x]; ++i, ++weight)
                for (std::size_t c = 0; c < Channels; ++c) sums[c] += *pixel++ * *weight;
            for (std::size_t c = 0; c < Channels; ++c) place[c] = Rule::rounded(sums[c]);
        }
    return out;
}

template <class T, std::size_t Channels>
Picture<T, Channels> to_height(const Picture<T, Channels>& in, int height) {
    if (in.height == static_cast<std::size_t>(height)) return in;
    using Rule = Arithmetic<T>;
    const Taps taps = triangle(static_cast<int>(in.height), height);
    const auto weights = weights_of<T>(taps);
    Picture<T, Channels> out{in.width, static_cast<std::size_t>(height), {}};
    const std::size_t row = in.width * Channels;
    out.values.resize(row * out.height);
    std::vector<typename Rule::Sum> sums(row);
    for (std::size_t y = 0; y < out.height; ++y) {
        std::fill(sums.begin(), sums.end(), Rule::kStart);
        const T* value = &in.values[static_cast<std::size_t>(taps.first[y]) * row];
        for (int i = 0; i < taps.count[y]; ++i) {
            const auto weight = weights[y * taps.stride + static_cast<std::size_t>(i)];
            for (std::size_t k = 0; k < row; ++k) sums[k] += *value++ * weight;
        }
        for (std::size_t k = 0; k < row; ++k) out.values[y * row + k] = Rule::rounded(sums[k]);
    }
    return out;
}

// Values are rounded between the passes, so their order shows. Pillow 13 begins with the height when
// it shrinks, and by more than twice what the width shrinks. Older ones never do (11.0, 12.0, 12.2 and
// 12.3 were compared), which is why save-deploy asks for 13.
template <class T, std::size_t Channels>
Picture<T, Channels> resized(const Picture<T, Channels>& in, int width, int height) {
    const int less_high = static_cast<int>(in.height) - height;
    const int less_wide = static_cast<int>(in.width) - width;
    if (less_high > 0 && less_high > 2 * less_wide) return to_width(to_height(in, height), width);
    return to_height(to_width(in, width), height);
}

}  // namespace

void check_size(int width, int height, save_detail detail, const char* what) {
    const bool fits = width > 0 && height > 0 && width <= kMaxSide && height <= kMaxSide &&
                      static_cast<std::int64_t>(width) * height <= kMaxPixels;
    if (!fits)
        throw Error(detail, what, std::to_string(width) + " x " + std::to_string(height),
            "1 to 65535 pixels a side, 178956970 in all");
}

void check_frame(const save_frame& frame) {
    if (frame.rgb == nullptr)
        throw Error(SAVE_DETAIL_ARGUMENT, "frame without pixels", "rgb = NULL", "8-bit RGB");
    check_size(frame.width, frame.height, SAVE_DETAIL_DATA, "frame of a size that cannot be used");
    if (frame.row_bytes != 0 && frame.row_bytes < 3 * static_cast<std::size_t>(frame.width))
        throw Error(SAVE_DETAIL_ARGUMENT, "rows of the frame overlap",
            "row_bytes = " + std::to_string(frame.row_bytes),
            "0, or at least " + std::to_string(3 * static_cast<std::size_t>(frame.width)));
}

void resize_frame(const save_frame& frame, int res, std::uint8_t* image) {
    Picture<std::uint8_t, 3> picture{
        static_cast<std::size_t>(frame.width), static_cast<std::size_t>(frame.height), {}};
    const std::size_t row = 3 * picture.width;
    const std::size_t row_bytes = frame.row_bytes != 0 ? frame.row_bytes : row;
    picture.values.resize(row * picture.height);
    for (std::size_t y = 0; y < picture.height; ++y)
        std::memcpy(&picture.values[y * row], frame.rgb + y * row_bytes, row);
    const Picture<std::uint8_t, 3> square = resized(picture, res, res);
    std::memcpy(image, square.values.data(), square.values.size());
}

std::vector<float> resize_logits(const float* logits, int side, int width, int height) {
    const std::size_t n = static_cast<std::size_t>(side);
    const Picture<float, 1> picture{n, n, std::vector<float>(logits, logits + n * n)};
    return resized(picture, width, height).values;
}

void mask_of_logits(const float* logits, int side, int width, int height, std::uint8_t* mask,
    float threshold) {
    const std::size_t size = static_cast<std::size_t>(side) * static_cast<std::size_t>(side);
    if (!std::all_of(logits, logits + size, [](float logit) { return std::isfinite(logit); }))
        throw Error(SAVE_DETAIL_PARITY, "the backend produced NaN or infinite logits", "",
            "finite values", "export with --fp32");
    const std::vector<float> found = resize_logits(logits, side, width, height);
    std::transform(found.begin(), found.end(), mask,
        [&](float logit) { return static_cast<std::uint8_t>(logit > threshold ? 255 : 0); });
}

}  // namespace save_core
