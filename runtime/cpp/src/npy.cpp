#include "npy.hpp"

#include <cstring>

#include "error.hpp"

namespace save_core {
namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr std::size_t kMagicSize = 6;
constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 33;

struct Dtype {
    const char* name;
    const char* code;
    std::size_t bytes;
};
constexpr Dtype kDtypes[] = {{"float32", "<f4", 4}, {"uint8", "|u1", 1}};

[[noreturn]] void refuse(const std::string& name, const std::string& got) {
    throw Error(SAVE_DETAIL_BUNDLE, "array file cannot be read", name + ": " + printable(got),
        "a .npy file of float32 or uint8, C order", "copy the bundle again, or export it again");
}

// Text after `key` in the header's dictionary, without leading spaces.
std::string value_of(const std::string& header, const std::string& key, const std::string& name) {
    const std::size_t at = header.find("'" + key + "':");
    if (at == std::string::npos) refuse(name, "header without " + key);
    const std::size_t start = header.find_first_not_of(' ', at + key.size() + 3);
    if (start == std::string::npos) refuse(name, "header without a value of " + key);
    return header.substr(start);
}

std::vector<std::int64_t> shape_of(const std::string& text, const std::string& name) {
    const std::size_t end = text.find(')');
    if (text.empty() || text[0] != '(' || end == std::string::npos) refuse(name, "shape " + text);
    std::vector<std::int64_t> shape;
    std::int64_t value = -1;  // -1: no digit yet
    for (std::size_t i = 1; i <= end; ++i) {
        const char c = text[i];
        if (c >= '0' && c <= '9') {
            value = (value < 0 ? 0 : value) * 10 + (c - '0');
            if (value > static_cast<std::int64_t>(kMaxElements)) refuse(name, "shape " + text);
        } else if (c == ',' || c == ')') {
            if (value >= 0) shape.push_back(value);
            value = -1;
        } else if (c != ' ') {
            refuse(name, "shape " + text);
        }
        if (shape.size() > 8) refuse(name, "shape " + text);
    }
    return shape;
}

}  // namespace

std::size_t Npy::size() const {
    std::size_t n = 1;
    for (const std::int64_t d : shape) n *= static_cast<std::size_t>(d);
    return n;
}

const std::uint8_t* Npy::u8(std::size_t row) const {
    return data.data() + row * (data.size() / static_cast<std::size_t>(shape[0]));
}

const float* Npy::f32(std::size_t row) const {
    // new unsigned char[] is aligned for any type
    return static_cast<const float*>(static_cast<const void*>(u8(row)));
}

Npy parse_npy(const Bytes& bytes, const std::string& name) {
    if (bytes.size() < 10 || std::memcmp(bytes.data(), kMagic, kMagicSize) != 0)
        refuse(name, "no .npy file");
    const int version = bytes[6];
    if (version != 1 && version != 2) refuse(name, "version " + std::to_string(version));
    const std::size_t fixed = version == 1 ? 10 : 12;
    if (bytes.size() < fixed) refuse(name, "truncated header");
    std::size_t length = bytes[8] | static_cast<std::size_t>(bytes[9]) << 8;
    if (version == 2)
        length |= static_cast<std::size_t>(bytes[10]) << 16 | static_cast<std::size_t>(bytes[11]) << 24;
    if (length > bytes.size() - fixed) refuse(name, "truncated header");
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(fixed);
    const std::string header(begin, begin + static_cast<std::ptrdiff_t>(length));

    const std::string descr = value_of(header, "descr", name);
    const Dtype* dtype = nullptr;
    for (const Dtype& known : kDtypes)
        if (descr.compare(0, 5, "'" + std::string(known.code) + "'") == 0) dtype = &known;
    if (dtype == nullptr) refuse(name, "dtype " + descr.substr(0, 12));
    if (value_of(header, "fortran_order", name).compare(0, 5, "False") != 0)
        refuse(name, "Fortran order");

    Npy array{dtype->name, shape_of(value_of(header, "shape", name), name), {}};
    if (array.shape.empty()) refuse(name, "a scalar");
    std::uint64_t elements = 1;
    for (const std::int64_t d : array.shape) {
        if (d == 0) refuse(name, "an empty array");
        if (static_cast<std::uint64_t>(d) > kMaxElements / elements)
            refuse(name, "shape " + shown(array.shape));
        elements *= static_cast<std::uint64_t>(d);
    }
    const std::size_t payload = bytes.size() - fixed - length;
    if (payload != elements * dtype->bytes)
        refuse(name, std::to_string(payload) + " bytes for " + array.dtype + " " + shown(array.shape));
    array.data.assign(begin + static_cast<std::ptrdiff_t>(length), bytes.end());
    return array;
}

Npy read_npy(const std::string& path) {
    return parse_npy(read_file(path, SAVE_DETAIL_BUNDLE), path);
}

void expect(const Npy& array, const std::string& dtype, const std::vector<std::int64_t>& shape,
    const std::string& name) {
    if (array.dtype != dtype || array.shape != shape)
        throw Error(SAVE_DETAIL_BUNDLE, "array file does not fit the manifest",
            name + ": " + array.dtype + " " + shown(array.shape), dtype + " " + shown(shape));
}

Bytes npy_bytes(
    const std::string& dtype, const std::vector<std::int64_t>& shape, const void* data) {
    const Dtype& kind = dtype == kDtypes[0].name ? kDtypes[0] : kDtypes[1];
    std::string header = "{'descr': '" + std::string(kind.code) +
                         "', 'fortran_order': False, 'shape': " + shown(shape) + ", }";
    header.append(63 - (kMagicSize + 4 + header.size()) % 64, ' ');  // data starts at a multiple of 64
    header += '\n';
    Bytes bytes(kMagic, kMagic + kMagicSize);
    bytes.insert(bytes.end(), {1, 0, static_cast<unsigned char>(header.size() & 0xff),
                                  static_cast<unsigned char>(header.size() >> 8)});
    bytes.insert(bytes.end(), header.begin(), header.end());
    std::size_t size = kind.bytes;
    for (const std::int64_t d : shape) size *= static_cast<std::size_t>(d);
    const auto* payload = static_cast<const unsigned char*>(data);
    bytes.insert(bytes.end(), payload, payload + size);
    return bytes;
}

std::string shown(const std::vector<std::int64_t>& shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i)
        text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return text + (shape.size() == 1 ? ",)" : ")");
}

}  // namespace save_core
