#include "kept.hpp"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <ostream>
#include <random>
#include <streambuf>

#if defined(__unix__)
#include <sys/stat.h>
#endif

#include "error.hpp"
#include "files.hpp"
#include "sha256.hpp"

namespace save_core {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kDigestBytes = 32;
constexpr const char* kBuiltHere = "engines_built_here";  // as runtime/engine_trust.py

std::string random_name() {
    std::random_device device;
    return std::to_string(device()) + "-" + std::to_string(device());
}

std::string variable(const char* name) {
    const char* const value = std::getenv(name);
    return value == nullptr ? std::string() : std::string(value);
}

// As save_deploy/files.py; empty where there is none.
std::string cache_root() {
    if (const std::string own = variable("SAVE_DEPLOY_CACHE"); !own.empty()) return own;
    if (const std::string xdg = variable("XDG_CACHE_HOME"); !xdg.empty())
        return joined(xdg, "save-deploy");
    const std::string home = variable("HOME");
    return home.empty() ? home : joined(joined(home, ".cache"), "save-deploy");
}

bool linked(const fs::path& from, const fs::path& to, const std::set<std::string>& names) {
    std::error_code error;
    for (const std::string& name : names) {
        fs::create_directories((to / name).parent_path(), error);
        const fs::path real = fs::canonical(from / name, error);
        if (!error) fs::create_hard_link(real, to / name, error);
        if (error) return false;  // another disk, or a system that forbids links to others' files
    }
    return true;
}

// Of processes that were killed while they wrote: nobody writes for an hour.
void remove_old_partials(const fs::path& folder) {
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
        const bool ours = entry.path().filename().string().rfind(".save.partial-", 0) == 0;
        const auto changed = fs::last_write_time(entry.path(), error);
        if (ours && !error && fs::file_time_type::clock::now() - changed > std::chrono::hours(1))
            fs::remove(entry.path(), error);
    }
}

// What a stream writes goes to a file; models are written with jumps back to their headers.
class FileBuffer final : public std::streambuf {
public:
    explicit FileBuffer(std::FILE* file) : file_(file) {}

protected:
    std::streamsize xsputn(const char* data, std::streamsize size) override {
        const std::size_t n = static_cast<std::size_t>(size);
        return static_cast<std::streamsize>(std::fwrite(data, 1, n, file_));
    }
    int_type overflow(int_type character) override {
        if (traits_type::eq_int_type(character, traits_type::eof())) return traits_type::not_eof(character);
        return std::fputc(traits_type::to_char_type(character), file_) == EOF ? traits_type::eof() : character;
    }
    int sync() override { return std::fflush(file_) == 0 ? 0 : -1; }
    pos_type seekoff(off_type offset, std::ios_base::seekdir from, std::ios_base::openmode) override {
        const int whence = from == std::ios_base::beg   ? SEEK_SET
                           : from == std::ios_base::cur ? SEEK_CUR
                                                        : SEEK_END;
        const bool moved = std::fseek(file_, static_cast<long>(offset), whence) == 0;
        return moved ? pos_type(off_type{std::ftell(file_)}) : pos_type(off_type{-1});
    }
    pos_type seekpos(pos_type place, std::ios_base::openmode mode) override {
        return seekoff(off_type{place}, std::ios_base::beg, mode);
    }

private:
    std::FILE* file_;
};

}  // namespace

std::unique_ptr<const Kept> read_kept(const std::string& path) {
    std::unique_ptr<Kept> found(new Kept{MappedFile(path), 0});
    const MappedFile& file = found->file;
    if (file.size() <= kDigestBytes) return nullptr;
    found->size = file.size() - kDigestBytes;
    const std::string known(reinterpret_cast<const char*>(file.data()) + found->size, kDigestBytes);
    if (digest_of_sums(file.data(), found->size) != known) return nullptr;
    return found;
}

void keep(const std::string& path, const std::function<void(std::ostream&)>& write) noexcept {
    try {
        fs::create_directories(fs::path(path).parent_path());
        remove_old_partials(fs::path(path).parent_path());
        write_file(path, [&](std::FILE* file) {
            FileBuffer buffer(file);
            std::ostream stream(&buffer);
            write(stream);
            if (!stream || std::fseek(file, 0, SEEK_END) != 0 || std::fflush(file) != 0) return EIO;
            const MappedFile content(::fileno(file));
            if (content.size() == 0 || std::ftell(file) != static_cast<long>(content.size()))
                return EIO;  // it cannot be mapped
            const std::string digest = digest_of_sums(content.data(), content.size());
            const bool written = std::fwrite(digest.data(), 1, digest.size(), file) == digest.size();
            return written ? 0 : EIO;
        });
    } catch (...) {  // a full disk, no memory, a model that cannot be written: nothing is kept
    }
}

std::string mark_of_check(const std::string& cache, const std::string& path, const std::string& sha256,
    const std::string& stamp) {
    if (cache.empty() || stamp.empty()) return std::string();
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    if (error) return std::string();
    const std::string told = real.string() + "\n" + sha256 + "\n" + stamp;
    return joined(joined(cache, "checked"), sha256_of(told.data(), told.size()));
}

void make_mark(const std::string& mark) noexcept {
    try {
        fs::create_directories(fs::path(mark).parent_path());
        write_file(mark, "", 0);
    } catch (...) {  // a cache that cannot be written: the next start compares again
    }
}

std::string content_of(
    const Manifest& manifest, const std::string& graph, const std::set<std::string>& weights) {
    std::string hashes = manifest.files.at(graph).sha256;
    if (weights.empty()) return hashes;
    for (const std::string& name : weights) hashes += " " + manifest.files.at(name).sha256;
    return sha256_of(hashes.data(), hashes.size());
}

Stamps stamps_of(const Manifest& manifest, const std::string& folder) {
    Stamps found;
    for (const auto& [name, record] : manifest.files) {
        const std::string path = joined(folder, name);
        std::error_code error;
        const auto changed = fs::last_write_time(path, error).time_since_epoch().count();
        if (error) continue;
        found[name] = std::to_string(file_size(path)) + " " + std::to_string(changed);
#if defined(__unix__)
        struct stat status {};  // another file under the same name
        if (stat(path.c_str(), &status) == 0)
            found[name] += " " + std::to_string(status.st_dev) + " " + std::to_string(status.st_ino);
#endif
    }
    return found;
}

void require_unchanged(const Stamps& before, const Manifest& manifest, const std::string& folder) {
    const Stamps after = stamps_of(manifest, folder);
    for (const auto& [name, stamp] : before) {
        const auto now = after.find(name);
        if (now == after.end() || now->second != stamp)
            throw Error(SAVE_DETAIL_BUNDLE, "bundle file changed while it was opened",
                printable(joined(folder, name)), "files that nobody writes to",
                "write a bundle beside the old one and rename it");
    }
}

Gathered::Gathered(const std::string& path, const std::set<std::string>& weights) : path_(path) {
    if (weights.empty()) return;
    const fs::path file(path), from = file.parent_path();
    std::set<std::string> names = weights;
    names.insert(file.filename().string());
    std::error_code error;
    const fs::path real = fs::canonical(from.empty() ? fs::path(".") : from, error);
    bool together = !error;
    for (const std::string& name : names)
        together = together && fs::canonical(from / name, error) == real / name && !error;
    if (together) return;
    try {
        const std::string root = cache_root();
        for (const fs::path& base : {fs::path(root), fs::temp_directory_path()}) {
            if (base.empty()) continue;
            folder_ = (base / ("bundle-" + random_name())).string();
            if (!fs::create_directories(folder_, error) || error) continue;
            if (linked(from, folder_, names)) break;
            fs::remove_all(folder_, error);
            folder_.clear();
        }
        if (folder_.empty()) {
            folder_ = (fs::temp_directory_path() / ("bundle-" + random_name())).string();
            for (const std::string& name : names) {
                const fs::path to = fs::path(folder_) / name;
                fs::create_directories(to.parent_path());
                fs::copy_file(from / name, to);
            }
        }
    } catch (const fs::filesystem_error& problem) {
        fs::remove_all(folder_, error);
        throw Error(SAVE_DETAIL_BACKEND, "the weights cannot be brought into one folder",
            printable(problem.what()), "files, or links on the disk of the cache folder",
            "copy the bundle to a folder of files: cp -rL BUNDLE DIR");
    }
    path_ = (fs::path(folder_) / file.filename()).string();
}

Gathered::~Gathered() {
    std::error_code error;
    if (!folder_.empty()) fs::remove_all(folder_, error);
}

bool built_here(const std::string& sha256) {
    const std::string root = cache_root();
    return !root.empty() && is_file(joined(joined(root, kBuiltHere), sha256));
}

}  // namespace save_core
