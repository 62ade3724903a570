#include "kept.hpp"

#include <cstdlib>
#include <filesystem>
#include <new>
#include <random>

#if defined(__unix__)
#include <sys/stat.h>
#endif

#include "error.hpp"
#include "files.hpp"
#include "sha256.hpp"

namespace save_core {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kHashDigits = 64;
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

}  // namespace

std::optional<std::string> read_kept(const std::string& path) {
    if (!is_file(path)) return std::nullopt;
    try {
        const Bytes bytes = read_file(path, SAVE_DETAIL_BACKEND);
        if (bytes.size() < kHashDigits) return std::nullopt;
        const std::size_t size = bytes.size() - kHashDigits;
        const std::string known(bytes.begin(), bytes.begin() + kHashDigits);
        if (sha256_of(bytes.data() + kHashDigits, size) != known) return std::nullopt;
        return std::string(bytes.begin() + kHashDigits, bytes.end());
    } catch (const Error&) {
        return std::nullopt;
    } catch (const std::bad_alloc&) {
        return std::nullopt;
    }
}

void keep(const std::string& path, const std::string& content) noexcept {
    try {
        const fs::path target(path);
        fs::create_directories(target.parent_path());
        const std::string partial = path + ".partial-" + random_name();
        const std::string all = sha256_of(content.data(), content.size()) + content;
        write_file(partial, all.data(), all.size());
        std::error_code error;
        fs::rename(partial, target, error);
        if (error) fs::remove(partial, error);
    } catch (...) {  // a full disk, no memory: nothing is kept
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
