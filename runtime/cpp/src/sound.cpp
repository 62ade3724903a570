#include "sound.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>

#include "downmix.hpp"
#include "error.hpp"

namespace save_core {
namespace {

// The windowed sinc of torchaudio.functional.resample with its defaults: zero crossings on each
// side, and where the pass band ends as a share of the lower of the two Nyquist frequencies.
constexpr int kZeroCrossings = 6;
constexpr double kRolloff = 0.99;
constexpr double kMaxStartS = 1e9;
constexpr double kPi = 3.14159265358979323846;

struct Rates {
    std::int64_t from, to;  // without their common divisor
};

Rates reduced(int rate_hz) {
    const int divisor = std::gcd(rate_hz, SAVE_SAMPLE_RATE);
    return {rate_hz / divisor, SAVE_SAMPLE_RATE / divisor};
}

// Output j of `rates.to` outputs per period reads inputs `first` .. `first + size`, counted from the
// first input of its period.
struct Kernel {
    std::int64_t first;
    std::vector<float> weights;
};

// All in float32 and in the reference's order: where the rates share few divisors its phases are
// rounded by up to 1e-3 of a zero crossing, and a better kernel would give another sound. Inputs
// outside the window weigh 1e-15 at most there and are left out here.
Kernel kernel_of(std::int64_t phase, Rates rates) {
    const double base_exact = static_cast<double>(std::min(rates.from, rates.to)) * kRolloff;
    const float base = static_cast<float>(base_exact);
    const float from = static_cast<float>(rates.from);
    const float offset = static_cast<float>(-phase) / static_cast<float>(rates.to);
    const float scale = static_cast<float>(base_exact / static_cast<double>(rates.from));
    const float pi = static_cast<float>(kPi), crossings = static_cast<float>(kZeroCrossings);
    const double reach = kZeroCrossings / base_exact;  // in periods
    const double center = static_cast<double>(phase) / static_cast<double>(rates.to);
    const double n = static_cast<double>(rates.from);
    Kernel kernel{static_cast<std::int64_t>(std::floor((center - reach) * n)), {}};
    const std::int64_t last = static_cast<std::int64_t>(std::ceil((center + reach) * n));
    for (std::int64_t i = kernel.first; i <= last; ++i) {
        float t = (offset + static_cast<float>(i) / from) * base;
        t = std::clamp(t, -crossings, crossings);
        const float cosine = std::cos(t * pi / crossings / 2.0F);
        t *= pi;
        const float sinc = t == 0.0F ? 1.0F : std::sin(t) / t;
        kernel.weights.push_back(sinc * (cosine * cosine * scale));
    }
    return kernel;
}

}  // namespace

void check_format(int n_channels, int rate_hz) {
    if (n_channels < 1 || n_channels > 1024)
        throw Error(SAVE_DETAIL_DATA, "wrong number of channels", std::to_string(n_channels),
            "1 to 1024");
    if (rate_hz < kMinRateHz || rate_hz > kMaxRateHz)
        throw Error(SAVE_DETAIL_DATA, "sample rate out of range", std::to_string(rate_hz) + " Hz",
            "1000 to 768000 Hz");
}

void check_sound(const save_sound& sound) {
    if (sound.samples == nullptr || sound.n_frames == 0)
        throw Error(SAVE_DETAIL_DATA, "sound without samples", "0 samples", "at least one");
    check_format(sound.n_channels, sound.rate_hz);
}

void check_window(const float* window) {
    float peak = 0.0F;
    bool finite = true, whole = true;
    for (std::size_t i = 0; i < SAVE_WINDOW_SAMPLES; ++i) {
        finite = finite && std::isfinite(window[i]);
        whole = whole && window[i] == std::rint(window[i]);
        peak = std::max(peak, std::fabs(window[i]));
    }
    if (!finite)
        throw Error(SAVE_DETAIL_DATA, "sound contains NaN or infinite samples", "",
            "finite samples");
    if (peak > kMaxPeak)
        throw Error(SAVE_DETAIL_DATA, "sound is far too loud",
            "samples up to " + std::to_string(peak),
            "samples in [-1,1]; above 16 they are taken for integers",
            "divide samples of 16 bits by 32768");
    if (peak > 1.0F && whole)
        throw Error(SAVE_DETAIL_DATA, "sound of whole numbers",
            "integers up to " + std::to_string(peak), "samples in [-1,1]",
            "divide samples of 16 bits by 32768");
}

void check_embeddings(const float* embeddings, std::size_t n) {
    const bool finite = std::all_of(embeddings, embeddings + n * SAVE_EMBEDDING_SIZE,
        [](float value) { return std::isfinite(value); });
    if (!finite)
        throw Error(SAVE_DETAIL_DATA, "audio embedding contains NaN or infinity", "",
            "finite values");
}

std::vector<float> mono(const save_sound& sound, std::size_t begin, std::size_t end) {
    const std::size_t channels = static_cast<std::size_t>(sound.n_channels);
    std::vector<float> mixed(end - begin);
    to_mono(sound.samples + begin * channels, mixed.size(), mono_weights(sound.n_channels),
        mixed.data());
    for (const float value : mixed)
        if (!std::isfinite(value))
            throw Error(SAVE_DETAIL_DATA, "sound contains NaN or infinite samples", "",
                "finite samples");
    return mixed;
}

std::size_t resampled_size(std::size_t n, int rate_hz) {
    if (rate_hz == SAVE_SAMPLE_RATE) return n;
    const Rates rates = reduced(rate_hz);
    const double exact = static_cast<double>(rates.to) * static_cast<double>(n) /
                         static_cast<double>(rates.from);
    // the reference rounds to float32 before it rounds up, and has whole periods only
    const std::size_t wanted = static_cast<std::size_t>(std::ceil(static_cast<float>(exact)));
    const std::size_t made = static_cast<std::size_t>(rates.to) *
                             (n / static_cast<std::size_t>(rates.from) + 1);
    return std::min(wanted, made);
}

std::vector<float> resampled(const save_sound& sound, std::size_t begin, std::size_t count) {
    const std::size_t size = resampled_size(sound.n_frames, sound.rate_hz);
    begin = std::min(begin, size);
    const std::size_t end = begin + std::min(size - begin, count);
    if (begin == end) return {};
    if (sound.rate_hz == SAVE_SAMPLE_RATE) return mono(sound, begin, end);
    const Rates rates = reduced(sound.rate_hz);
    const std::int64_t n = static_cast<std::int64_t>(sound.n_frames);
    // what the kernels of these outputs reach, and a period more on each side
    const std::int64_t reach = 2 * rates.from + kZeroCrossings * (rates.from / rates.to + 2) * 2;
    const std::int64_t low =
        std::max<std::int64_t>(0, static_cast<std::int64_t>(begin) / rates.to * rates.from - reach);
    const std::int64_t high =
        std::min(n, static_cast<std::int64_t>(end) / rates.to * rates.from + reach);
    const std::vector<float> samples =
        mono(sound, static_cast<std::size_t>(std::min(low, n)), static_cast<std::size_t>(high));
    std::vector<Kernel> kernels(static_cast<std::size_t>(rates.to));  // made when first needed
    std::vector<float> found(end - begin);
    for (std::size_t k = 0; k < found.size(); ++k) {
        const std::int64_t index = static_cast<std::int64_t>(begin + k);
        Kernel& kernel = kernels[static_cast<std::size_t>(index % rates.to)];
        if (kernel.weights.empty()) kernel = kernel_of(index % rates.to, rates);
        const std::int64_t first = index / rates.to * rates.from + kernel.first;
        const std::int64_t taps = static_cast<std::int64_t>(kernel.weights.size());
        double sum = 0.0;
        for (std::int64_t i = std::max<std::int64_t>(0, -first); i < std::min(taps, n - first); ++i)
            sum += static_cast<double>(samples[static_cast<std::size_t>(first + i - low)]) *
                   static_cast<double>(kernel.weights[static_cast<std::size_t>(i)]);
        found[k] = static_cast<float>(sum);
    }
    return found;
}

void window_at(const save_sound& sound, std::size_t begin, float* window) {
    const std::vector<float> heard = resampled(sound, begin, SAVE_WINDOW_SAMPLES);
    std::fill(std::copy(heard.begin(), heard.end(), window), window + SAVE_WINDOW_SAMPLES, 0.0F);
}

void second(const save_sound& sound, int index, float* window) {
    check_sound(sound);
    if (index < 0)
        throw Error(SAVE_DETAIL_ARGUMENT, "wrong second", std::to_string(index), "0 or more");
    const std::size_t size = resampled_size(sound.n_frames, sound.rate_hz);
    const std::size_t last = size > SAVE_WINDOW_SAMPLES ? size - SAVE_WINDOW_SAMPLES : 0;
    window_at(sound, std::min(kStepSamples * static_cast<std::size_t>(index), last), window);
}

void second_at(const save_sound& sound, double start_s, float* window) {
    check_sound(sound);
    if (!(start_s >= 0.0 && start_s <= kMaxStartS))
        throw Error(SAVE_DETAIL_ARGUMENT, "wrong start of a second", std::to_string(start_s) + " s",
            "0 to 1e9 s");
    window_at(sound, static_cast<std::size_t>(std::llround(start_s * SAVE_SAMPLE_RATE)), window);
}

}  // namespace save_core
