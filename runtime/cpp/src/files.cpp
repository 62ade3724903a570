#include "files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

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
void read_pieces(const std::string& path, save_detail detail, std::uint64_t limit, F each) {
    const File file = opened(path, "rb", detail);
    std::vector<unsigned char> piece(1 << 20);
    while (limit > 0) {
        const std::size_t wanted = static_cast<std::size_t>(std::min<std::uint64_t>(limit, piece.size()));
        const std::size_t got = std::fread(piece.data(), 1, wanted, file.get());
        if (std::ferror(file.get()) != 0)
            throw Error(detail, "file cannot be read", path + ": " + std::strerror(errno));
        if (got == 0) return;
        each(piece.data(), got);
        limit -= got;
    }
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
    read_pieces(path, detail, limit, [&](const unsigned char* data, std::size_t size) {
        bytes.insert(bytes.end(), data, data + size);
    });
    return bytes;
}

std::string sha256_of_file(const std::string& path) {
    Sha256 hash;
    read_pieces(path, SAVE_DETAIL_BUNDLE, UINT64_MAX,
        [&](const unsigned char* data, std::size_t size) { hash.update(data, size); });
    return hash.hex();
}

}  // namespace save_core
