// Reading files whole or in part, with errors that name them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "save_runtime.h"

namespace save_core {

using Bytes = std::vector<unsigned char>;

std::string joined(const std::string& folder, const std::string& name);
bool is_file(const std::string& path);
std::uint64_t file_size(const std::string& path);
// The whole file, or its first `limit` bytes. Throws Error(detail) when it cannot be read.
Bytes read_file(const std::string& path, save_detail detail, std::uint64_t limit = UINT64_MAX);
// stamp: filled with stamp_of the file that was read.
std::string sha256_of_file(const std::string& path, std::string* stamp = nullptr);
// Device, inode, size and both times of a file, a line each; they change when the file does. Empty where
// it changed within the last minute, see save_deploy/bundle_files.py, and on other systems than Linux.
std::string stamp_of(const std::string& path);

// The content of a file, mapped: processes share its pages, and writes stay with this process. Empty
// where the file is empty or cannot be mapped.
class MappedFile {
public:
    explicit MappedFile(const std::string& path);
    explicit MappedFile(int descriptor);  // which may be closed afterwards
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    ~MappedFile();
    unsigned char* data() const { return data_; }
    std::size_t size() const { return size_; }

private:
    void map(int descriptor);

    unsigned char* data_ = nullptr;
    std::size_t size_ = 0;
};

// Writes into a new file beside `path`, then renames it: a reader never sees half a file. Links are
// followed, so that their file is replaced; what is no regular file (a device, a pipe) is written
// through. Throws Error.
void write_file(const std::string& path, const void* data, std::size_t size);
// The same for a regular file that `fill` writes; it may also read what it wrote.
// fill: returns 0, or the number of the system's error; what it throws passes.
void write_file(const std::string& path, const std::function<int(std::FILE*)>& fill);

}  // namespace save_core
