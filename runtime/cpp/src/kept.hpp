// What the runtime keeps or borrows outside the bundle: compiled models, links, notes of engines.
#pragma once

#include <functional>
#include <iosfwd>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "files.hpp"
#include "manifest.hpp"

namespace save_core {

// A compiled model that was kept, mapped from its file.
struct Kept {
    MappedFile file;
    std::size_t size = 0;  // of the model, at the start of the file
};

// Null where nothing is kept, or anything else. As in runtime/session/compiled.py a file ends with
// the digest of the rest and appears whole.
std::unique_ptr<const Kept> read_kept(const std::string& path);
// A folder that cannot be written costs the next start its time. write: writes the model.
void keep(const std::string& path, const std::function<void(std::ostream&)>& write) noexcept;

// The empty file in a cache which says that a file with this stamp was compared with its hash; empty
// without a stamp. As in save_deploy/bundle_files.py: Python's cache holds the same marks.
std::string mark_of_check(const std::string& cache, const std::string& path, const std::string& sha256,
    const std::string& stamp);
void make_mark(const std::string& mark) noexcept;

// sha256 over a graph and the files of its weights: that of the graph where it has none.
std::string content_of(
    const Manifest& manifest, const std::string& graph, const std::set<std::string>& weights);

// What changes when a file is written to or replaced, of each file of a bundle that is there.
using Stamps = std::map<std::string, std::string>;
Stamps stamps_of(const Manifest& manifest, const std::string& folder);
// Throws Error(BUNDLE) when a file is no longer the one that its stamp was taken of.
void require_unchanged(const Stamps& before, const Manifest& manifest, const std::string& folder);

// A graph in one folder with its weights. Backends refuse weights that lie elsewhere, as those of a
// bundle of links do (Hugging Face's cache): then hard links, or copies, in a folder of our own, which
// is gone with this object.
class Gathered {
public:
    Gathered(const std::string& path, const std::set<std::string>& weights);
    Gathered(const Gathered&) = delete;
    Gathered& operator=(const Gathered&) = delete;
    ~Gathered();
    const std::string& path() const { return path_; }

private:
    std::string path_, folder_;
};

// Was an engine built on this machine by this user? `save-build` notes it in the user's cache
// (runtime/engine_trust.py); a bundle cannot say so of itself.
bool built_here(const std::string& sha256);

}  // namespace save_core
