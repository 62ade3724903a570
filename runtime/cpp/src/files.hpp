// Reading files whole or in part, with errors that name them.
#pragma once

#include <cstdint>
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
std::string sha256_of_file(const std::string& path);
// Writes into a new file beside `path`, then renames it: a reader never sees half a file. Links are
// followed, so that their file is replaced; what is no regular file (a device, a pipe) is written
// through. Throws Error.
void write_file(const std::string& path, const void* data, std::size_t size);

}  // namespace save_core
