#include "files.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.hpp"
#include "sha256.hpp"

namespace save_core {
namespace {

struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Closer>;

File opened(const std::string& path, const char* mode, save_detail detail) {
    File file(std::fopen(path.c_str(), mode));
    if (!file)
        throw Error(detail, "file cannot be opened", path + ": " + std::strerror(errno));
    return file;
}

// Calls each(data, size) for pieces of the file, `limit` bytes at most.
template <class F>
void read_pieces(
    std::FILE* file, const std::string& path, save_detail detail, std::uint64_t limit, F each) {
    std::vector<unsigned char> piece(1 << 20);
    while (limit > 0) {
        const std::size_t wanted = static_cast<std::size_t>(std::min<std::uint64_t>(limit, piece.size()));
        const std::size_t got = std::fread(piece.data(), 1, wanted, file);
        if (std::ferror(file) != 0)
            throw Error(detail, "file cannot be read", path + ": " + std::strerror(errno));
        if (got == 0) return;
        each(piece.data(), got);
        limit -= got;
    }
}

std::string stamp_of(const struct stat& status) {
#if defined(__linux__)
    constexpr std::int64_t kSettledSeconds = 60;
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const std::int64_t now_s = std::chrono::duration_cast<std::chrono::seconds>(now).count();
    std::string text = std::to_string(status.st_dev) + "\n" + std::to_string(status.st_ino) + "\n" +
                       std::to_string(status.st_size);
    for (const timespec& time : {status.st_mtim, status.st_ctim}) {
        if (time.tv_sec < 0 || time.tv_sec >= now_s - kSettledSeconds) return std::string();
        text += "\n" + std::to_string(std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec);
    }
    return text;
#else
    (void)status;
    return std::string();
#endif
}

std::string stamp_of(int descriptor) {
    struct stat status {};
    return ::fstat(descriptor, &status) == 0 ? stamp_of(status) : std::string();
}

}  // namespace

std::string joined(const std::string& folder, const std::string& name) {
    return (std::filesystem::path(folder) / name).string();
}

bool is_file(const std::string& path) {
    std::error_code error;
    return std::filesystem::is_regular_file(path, error);
}

std::uint64_t file_size(const std::string& path) {
    std::error_code error;
    const std::uintmax_t size = std::filesystem::file_size(path, error);
    return error ? 0 : size;
}

Bytes read_file(const std::string& path, save_detail detail, std::uint64_t limit) {
    Bytes bytes;
    bytes.reserve(static_cast<std::size_t>(std::min(limit, file_size(path))));
    const File file = opened(path, "rb", detail);
    read_pieces(file.get(), path, detail, limit, [&](const unsigned char* data, std::size_t size) {
        bytes.insert(bytes.end(), data, data + size);
    });
    return bytes;
}

MappedFile::MappedFile(const std::string& path) {
    // without waiting for the writer of a pipe
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return;
    map(descriptor);
    ::close(descriptor);
}

MappedFile::MappedFile(int descriptor) { map(descriptor); }

void MappedFile::map(int descriptor) {
    struct stat status {};
    if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size <= 0) return;
    const std::size_t size = static_cast<std::size_t>(status.st_size);
    void* const place = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0);
    if (place != MAP_FAILED) data_ = static_cast<unsigned char*>(place), size_ = size;
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(data_, size_);
}

std::string sha256_of_file(const std::string& path, std::string* stamp) {
    Sha256 hash;
    const File file = opened(path, "rb", SAVE_DETAIL_BUNDLE);
    if (stamp != nullptr) *stamp = stamp_of(::fileno(file.get()));
    read_pieces(file.get(), path, SAVE_DETAIL_BUNDLE, UINT64_MAX,
        [&](const unsigned char* data, std::size_t size) { hash.update(data, size); });
    return hash.hex();
}

std::string stamp_of(const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 ? stamp_of(status) : std::string();
}

}  // namespace save_core
