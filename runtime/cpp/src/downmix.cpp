#include "downmix.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

namespace save_core {
namespace {

using Names = std::vector<std::string>;

constexpr double kBack = 0.5;

Names words(const char* text) {
    std::istringstream stream(text);
    Names found;
    for (std::string word; stream >> word;) found.push_back(word);
    return found;
}

const std::map<std::string, double>& weights_by_name() {
    static const double side = std::sqrt(0.5);  // -3 dB
    static const std::map<std::string, double> found = {{"FC", 1.0}, {"FL", side}, {"FR", side},
        {"FLC", side}, {"FRC", side}, {"TFL", side}, {"TFR", side}, {"BL", kBack}, {"BR", kBack},
        {"BC", kBack}, {"SL", kBack}, {"SR", kBack}, {"LFE", 0.0}, {"TC", 0.0}, {"TFC", 0.0},
        {"TBL", 0.0}, {"TBC", 0.0}, {"TBR", 0.0}, {"WL", 0.0}, {"WR", 0.0}};
    return found;
}

// FFmpeg's guess where only the number is known. Three channels (2.1 there) are averaged: conformance
// packs of all versions hold such a sound.
Names names_by_count(int n_channels) {
    switch (n_channels) {
    case 2: return words("FL FR");
    case 4: return words("FL FR FC BC");
    case 5: return words("FL FR FC BL BR");
    case 6: return words("FL FR FC LFE BL BR");
    case 7: return words("FL FR FC LFE BC SL SR");
    case 8: return words("FL FR FC LFE BL BR SL SR");
    default: return {};
    }
}

// Whether FFmpeg mixes this layout: known places, a front, and left never without right.
bool is_mixed(const Names& names) {
    const std::set<std::string> there(names.begin(), names.end());
    const auto has = [&](const char* name) { return there.count(name) != 0; };
    const bool known = std::all_of(names.begin(), names.end(),
        [](const std::string& name) { return weights_by_name().count(name) != 0; });
    return known && there.size() == names.size() && (has("FL") || has("FR") || has("FC")) &&
           has("FL") == has("FR") && has("BL") == has("BR") && has("SL") == has("SR") &&
           has("FLC") == has("FRC") && has("TFL") == has("TFR");
}

}  // namespace

std::vector<float> mono_weights(int n_channels, const Names& names) {
    const std::size_t n = static_cast<std::size_t>(n_channels);
    const Names known = names.empty() ? names_by_count(n_channels) : names;
    std::vector<float> weights(n, 1.0F / static_cast<float>(n));
    if (known.size() != n || !is_mixed(known)) return weights;
    double sum = 0.0;
    for (const std::string& name : known) sum += weights_by_name().at(name);
    for (std::size_t c = 0; c < n; ++c)
        weights[c] = static_cast<float>(weights_by_name().at(known[c]) / sum);
    return weights;
}

void to_mono(const float* samples, std::size_t n, const std::vector<float>& weights, float* mono) {
    const std::size_t channels = weights.size();
    const auto [least, most] = std::minmax_element(weights.begin(), weights.end());
    const bool equal = *least == *most;
    for (std::size_t i = 0; i < n; ++i, samples += channels) {
        float sum = 0.0F;
        for (std::size_t c = 0; c < channels; ++c) {
            if (equal) sum += samples[c];
            else if (weights[c] != 0.0F) sum += samples[c] * weights[c];
        }
        mono[i] = equal && channels > 1 ? sum / static_cast<float>(channels) : sum;
    }
}

Names names_of_file(const std::string& kind, int n_channels, const std::vector<int>& map) {
    // SF_CHANNEL_MAP_MONO and on; "?" is a place without a name here
    static const Names numbered = words(
        "? FC FL FR FC FL FR FC BC BL BR LFE FLC FRC SL SR TC TFL TFR TFC TBL TBR TBC");
    Names names;
    for (const int number : map) {
        const std::size_t at = static_cast<std::size_t>(number);
        names.push_back(number >= 0 && at < numbered.size() ? numbered[at] : "?");
    }
    if (!map.empty()) return names;
    const bool flac = kind == "FLAC", ogg = kind == "OGG";  // Vorbis and Opus: center in the middle
    switch (flac || ogg ? n_channels : 0) {
    case 3: return words(flac ? "FL FR FC" : "FL FC FR");
    case 4: return words("FL FR BL BR");
    case 5: return words(flac ? "FL FR FC BL BR" : "FL FC FR BL BR");
    case 6: return words(flac ? "FL FR FC LFE BL BR" : "FL FC FR BL BR LFE");
    case 7: return words(flac ? "FL FR FC LFE BC SL SR" : "FL FC FR SL SR BC LFE");
    case 8: return words(flac ? "FL FR FC LFE BL BR SL SR" : "FL FC FR SL SR BL BR LFE");
    default: return {};
    }
}

}  // namespace save_core
