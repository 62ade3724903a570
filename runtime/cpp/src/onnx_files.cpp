#include "onnx_files.hpp"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <vector>

#include "error.hpp"

namespace save_core {
namespace {

constexpr int kMaxDepth = 100;  // protobuf's own limit
constexpr std::uint64_t kMaxFields = 5'000'000;
constexpr std::uint64_t kMaxText = 4096;
constexpr std::uint64_t kOpType = 4;  // of a node

enum Kind { kModel, kTraining, kFunction, kGraph, kNode, kAttribute, kSparse, kTensor, kEntry, kOther };

// The message in a field of another: every way from a model to the files of its tensors.
Kind inner(Kind kind, std::uint64_t field) {
    switch (kind) {
        case kModel: return field == 7 ? kGraph : field == 20 ? kTraining : field == 25 ? kFunction : kOther;
        case kTraining: return field == 1 || field == 2 ? kGraph : kOther;
        case kFunction: return field == 7 ? kNode : field == 11 ? kAttribute : kOther;
        case kGraph: return field == 1 ? kNode : field == 5 ? kTensor : field == 15 ? kSparse : kOther;
        case kNode: return field == 5 ? kAttribute : kOther;
        case kAttribute:
            if (field == 5 || field == 10) return kTensor;
            if (field == 6 || field == 11) return kGraph;
            return field == 22 || field == 23 ? kSparse : kOther;
        case kSparse: return field == 1 || field == 2 ? kTensor : kOther;
        case kTensor: return field == 13 ? kEntry : kOther;
        default: return kOther;
    }
}

// One pass over the messages of a file; what holds no message is skipped unread.
class Walk {
public:
    explicit Walk(const std::string& path) : path_(path), file_(path, std::ios::binary) {
        if (!file_) refuse("it cannot be read");
        file_.seekg(0, std::ios::end);
        size_ = static_cast<std::uint64_t>(file_.tellg());
        file_.seekg(0);
    }

    std::set<std::string> locations() {
        inside(kModel, size_, 0);
        if (!has_graph_) refuse("no graph");
        return found_;
    }

private:
    [[noreturn]] void refuse(const std::string& got) const {
        throw Error(SAVE_DETAIL_BUNDLE, printable(path_) + " is not an ONNX model", printable(got),
            "a graph written by save-export", "copy the bundle again, or export it again");
    }

    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            const int byte = file_.get();
            if (byte == std::char_traits<char>::eof()) refuse("it is cut off");
            ++at_;
            value |= static_cast<std::uint64_t>(byte & 127) << shift;
            if (byte < 128) return value;
        }
        refuse("a number of more than 64 bits");
    }

    void skip(std::uint64_t n, std::uint64_t end) {
        if (n > end - at_) refuse("it is cut off");
        file_.seekg(static_cast<std::streamoff>(n), std::ios::cur);
        at_ += n;
    }

    std::string text(std::uint64_t n, std::uint64_t end) {
        if (n > end - at_) refuse("it is cut off");
        if (n > kMaxText) refuse("a name of " + std::to_string(n) + " bytes");
        std::string value(static_cast<std::size_t>(n), '\0');
        if (!file_.read(value.data(), static_cast<std::streamsize>(n))) refuse("it is cut off");
        at_ += n;
        return value;
    }

    void inside(Kind kind, std::uint64_t end, int depth) {
        if (depth > kMaxDepth) refuse("nested too deeply");
        std::vector<std::string> values;  // of an entry: every one counts where fields are repeated
        bool is_location = false;
        while (at_ < end) {
            if (++fields_ > kMaxFields) refuse("too many fields");
            const std::uint64_t tag = varint() & 0xFFFFFFFF;  // what protobuf keeps of it
            const std::uint64_t field = tag >> 3;
            switch (tag & 7) {
                case 0: (void)varint(); break;
                case 1: skip(8, end); break;
                case 5: skip(4, end); break;
                case 2: {
                    const std::uint64_t size = varint();
                    if (at_ > end || size > end - at_) refuse("it is cut off");
                    const Kind next = inner(kind, field);
                    if (next != kOther) {
                        has_graph_ = has_graph_ || kind == kModel;
                        inside(next, at_ + size, depth + 1);
                    } else if (kind == kNode && field == kOpType) {
                        if (text(size, end) == "EPContext") refuse("precompiled code in the graph");
                    } else if (kind == kEntry && field == 1) {
                        is_location = text(size, end) == "location" || is_location;
                    } else if (kind == kEntry && field == 2) {
                        values.push_back(text(size, end));
                    } else {
                        skip(size, end);
                    }
                    break;
                }
                default: refuse("wire type " + std::to_string(tag & 7));
            }
        }
        if (at_ != end) refuse("it is cut off");
        if (is_location) found_.insert(values.begin(), values.end());
    }

    std::string path_;
    std::ifstream file_;
    std::uint64_t size_ = 0, at_ = 0, fields_ = 0;
    bool has_graph_ = false;
    std::set<std::string> found_;
};

}  // namespace

std::set<std::string> weight_files(
    const std::string& path, const std::map<std::string, FileRecord>& listed) {
    std::set<std::string> names;
    for (const std::string& location : Walk(path).locations()) {
        const std::string name = std::filesystem::path(location).lexically_normal().generic_string();
        if (location.find("..") != std::string::npos || listed.count(name) == 0)
            throw Error(SAVE_DETAIL_BUNDLE,
                printable(path) + " reads a file that the manifest does not list", printable(location),
                "weights in files with a size and a sha256 in manifest.json", "export it again");
        names.insert(name);
    }
    return names;
}

}  // namespace save_core
