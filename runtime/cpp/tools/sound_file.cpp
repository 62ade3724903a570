#include "sound_file.hpp"

#include <fcntl.h>
#include <sndfile.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "downmix.hpp"
#include "error.hpp"
#include "sound.hpp"

namespace save_tools {
namespace {

using save_core::Bytes;
using save_core::Error;

// root mean square below which nothing is heard (-80 dB)
constexpr double kSilence = 1e-4;
constexpr sf_count_t kPieceFrames = 1 << 16;
// of all channels together; some kilobytes of FLAC can hold hours of silence
constexpr std::size_t kMaxSamples = std::size_t{1} << 30;

struct Closer {
    void operator()(SNDFILE* file) const { sf_close(file); }
};
using File = std::unique_ptr<SNDFILE, Closer>;

struct Memory {
    const Bytes* bytes;
    sf_count_t at;
};

sf_count_t memory_size(void* user) {
    return static_cast<sf_count_t>(static_cast<Memory*>(user)->bytes->size());
}

sf_count_t memory_seek(sf_count_t offset, int whence, void* user) {
    auto* memory = static_cast<Memory*>(user);
    const sf_count_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? memory->at : memory_size(user);
    // a damaged file may ask for any place
    const sf_count_t bounded = std::clamp<sf_count_t>(offset, -memory_size(user), memory_size(user));
    memory->at = std::clamp<sf_count_t>(from + bounded, 0, memory_size(user));
    return memory->at;
}

sf_count_t memory_read(void* place, sf_count_t size, void* user) {
    auto* memory = static_cast<Memory*>(user);
    const sf_count_t got = std::clamp<sf_count_t>(memory_size(user) - memory->at, 0, size);
    // an empty file has no data at all, not even a place
    if (got > 0) std::memcpy(place, memory->bytes->data() + memory->at, static_cast<std::size_t>(got));
    memory->at += got;
    return got;
}

sf_count_t memory_write(const void*, sf_count_t, void*) { return 0; }
sf_count_t memory_tell(void* user) { return static_cast<Memory*>(user)->at; }

[[noreturn]] void refuse(const std::string& name, const std::string& reason) {
    throw Error(SAVE_DETAIL_DATA, "sound file cannot be read",
        name + ": " + save_core::printable(reason), "wav, flac or ogg");
}

// The place of every channel, where the file says it.
std::vector<std::string> names_of(SNDFILE* file, const SF_INFO& info) {
    std::vector<int> map(static_cast<std::size_t>(info.channels));
    const int size = static_cast<int>(map.size() * sizeof(int));
    if (sf_command(file, SFC_GET_CHANNEL_MAP_INFO, map.data(), size) != SF_TRUE) map.clear();
    const int kind = info.format & SF_FORMAT_TYPEMASK;
    const char* name = kind == SF_FORMAT_FLAC ? "FLAC" : kind == SF_FORMAT_OGG ? "OGG" : "";
    return save_core::names_of_file(name, info.channels, map);
}

SoundFile read_all(SNDFILE* file, const SF_INFO& info, const std::string& name, double seconds) {
    if (file == nullptr) refuse(name, sf_strerror(nullptr));
    save_core::check_format(info.channels, info.samplerate);
    const std::vector<float> weights = save_core::mono_weights(info.channels, names_of(file, info));
    SoundFile sound{{}, 1, info.samplerate};
    // the length in the header may be anything: grow with what is really there
    std::vector<float> piece(static_cast<std::size_t>(kPieceFrames) * weights.size());
    for (;;) {
        const sf_count_t got = sf_readf_float(file, piece.data(), kPieceFrames);
        const std::size_t n = static_cast<std::size_t>(std::max<sf_count_t>(got, 0));
        const std::size_t before = sound.samples.size();
        sound.samples.resize(before + n);
        save_core::to_mono(piece.data(), n, weights, sound.samples.data() + before);
        if (got < kPieceFrames || sound.seconds() >= seconds) break;
        if (sound.samples.size() > kMaxSamples / weights.size())
            throw Error(SAVE_DETAIL_DATA, "sound is too long", name,
                "at most " + std::to_string(kMaxSamples) + " samples in all");
    }
    if (sf_error(file) != SF_ERR_NO_ERROR) refuse(name, sf_strerror(file));
    if (sound.samples.empty()) refuse(name, "no samples");
    for (const float value : sound.samples)
        if (!std::isfinite(value))
            throw Error(SAVE_DETAIL_DATA, "sound contains NaN or infinite samples", name,
                "finite samples");
    return sound;
}

}  // namespace

SoundFile read_sound(const std::string& path, double seconds) {
    if (!save_core::is_file(path))
        throw Error(SAVE_DETAIL_DATA, "sound file not found", path, "wav, flac or ogg");
    // not by its name: libsndfile takes any bytes in a file called .au, .gsm or .vox for sound
    const int opened = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (opened < 0) refuse(path, std::strerror(errno));
    SF_INFO info{};
    const File file(sf_open_fd(opened, SFM_READ, &info, SF_TRUE));
    return read_all(file.get(), info, path, seconds);
}

SoundFile decode_sound(const Bytes& bytes, const std::string& name) {
    Memory memory{&bytes, 0};
    SF_VIRTUAL_IO io{memory_size, memory_seek, memory_read, memory_write, memory_tell};
    SF_INFO info{};
    const File file(sf_open_virtual(&io, SFM_READ, &info, &memory));
    return read_all(file.get(), info, name, std::numeric_limits<double>::infinity());
}

bool is_silent(const SoundFile& sound) {
    std::vector<float> heard(SAVE_WINDOW_SAMPLES);
    save_core::second(sound.view(), 0, heard.data());
    double power = 0.0;
    for (const float value : heard) power += static_cast<double>(value) * static_cast<double>(value);
    return std::sqrt(power / static_cast<double>(heard.size())) < kSilence;
}

}  // namespace save_tools
