// Hashing, arrays, resizing, resampling: against published values, Pillow 13.0 and torchaudio 2.11.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <unistd.h>

#include "check.hpp"
#include "compare.hpp"
#include "downmix.hpp"
#include "error.hpp"
#include "files.hpp"
#include "npy.hpp"
#include "output_file.hpp"
#include "resize.hpp"
#include "sha256.hpp"
#include "sound.hpp"

using namespace save_core;

namespace {

void test_sha256() {  // FIPS 180-4 examples
    CHECK(sha256_of("", 0) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256_of("abc", 3) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const std::string million(1'000'000, 'a');
    const std::string expected = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
    CHECK(sha256_of(million.data(), million.size()) == expected);
    for (const bool instructions : {true, false}) {
        Sha256 pieces(instructions);
        for (std::size_t at = 0, n = 1; at < million.size(); at += n, n = n % 197 + 1)
            pieces.update(million.data() + at, std::min(n, million.size() - at));
        CHECK(pieces.hex() == expected);
    }
    std::mt19937 random(0);
    for (std::size_t n = 0; n < 400; ++n) {
        std::string bytes(n, '\0');
        for (char& byte : bytes) byte = static_cast<char>(random());
        Sha256 plain(false);
        plain.update(bytes.data(), n);
        CHECK(plain.hex() == sha256_of(bytes.data(), n));
    }
}

// As runtime/session/compiled.py: 1 and 2 in the first blocks, and "ab" after them.
void test_digest_of_sums() {
    std::string content(2 * 4096, '\0');
    content[8] = 1, content[4096 + 80] = 2;
    content += "ab";
    const std::uint64_t sums[] = {1, 2};
    Sha256 expected;
    expected.update(sums, sizeof sums);
    expected.update("ab", 2);
    const auto bytes = expected.bytes();
    CHECK(digest_of_sums(content.data(), content.size()) == std::string(bytes.begin(), bytes.end()));
    content[5000] = 1;
    CHECK(digest_of_sums(content.data(), content.size()) != std::string(bytes.begin(), bytes.end()));
}

std::vector<std::uint8_t> pattern(int width, int height) {
    std::vector<std::uint8_t> rgb;
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c)
                rgb.push_back(static_cast<std::uint8_t>((x * 37 + y * 71 + c * 29) * (x + 1) % 256));
    return rgb;
}

void test_resize_frame() {
    struct Case {
        int width, height;
        std::vector<int> expected;
    };
    const Case cases[] = {
        {5, 3, {19, 55, 91, 136, 99, 169, 202, 50, 154, 218, 100, 46, 74, 71, 107, 177, 47, 117, 201,
                   49, 153, 149, 151, 97, 116, 113, 149, 169, 79, 109, 200, 88, 152, 138, 139, 157,
                   132, 168, 205, 116, 186, 150, 199, 154, 151, 189, 70, 208}},
        // both sides shrink and the height by more than twice as much: height first
        {3, 9, {59, 88, 117, 110, 89, 136, 157, 82, 131, 186, 69, 104, 140, 169, 92, 161, 130, 137,
                   145, 129, 133, 99, 168, 80, 116, 126, 149, 98, 134, 136, 87, 119, 143, 88, 88, 168,
                   158, 77, 106, 134, 140, 95, 139, 147, 89, 170, 96, 88}},
        {9, 13, {133, 105, 123, 159, 103, 140, 104, 128, 117, 128, 137, 143, 114, 131, 137, 94, 135,
                    125, 165, 111, 108, 167, 148, 129, 132, 132, 107, 145, 128, 112, 160, 126, 90,
                    145, 146, 127, 120, 109, 124, 133, 105, 168, 133, 126, 97, 129, 127, 119}}};
    for (const Case& one : cases) {
        const std::vector<std::uint8_t> rgb = pattern(one.width, one.height);
        std::vector<std::uint8_t> image(4 * 4 * 3);
        resize_frame({rgb.data(), one.width, one.height, 0}, 4, image.data());
        CHECK(std::vector<int>(image.begin(), image.end()) == one.expected);
    }
    // rows with a gap, and a frame that has the size already
    const std::vector<std::uint8_t> wide = pattern(4, 4);
    std::vector<std::uint8_t> gapped, image(4 * 4 * 3);
    for (std::size_t y = 0; y < 4; ++y) {
        gapped.insert(gapped.end(), wide.begin() + 12 * static_cast<long>(y),
            wide.begin() + 12 * static_cast<long>(y + 1));
        gapped.insert(gapped.end(), 5, 99);
    }
    resize_frame({gapped.data(), 4, 4, 17}, 4, image.data());
    CHECK(image == wide);
    CHECK_THROWS(check_frame({wide.data(), 0, 4, 0}), SAVE_DETAIL_DATA, "0 x 4");
    CHECK_THROWS(check_frame({wide.data(), 65535, 65535, 0}), SAVE_DETAIL_DATA, "178956970");
    CHECK_THROWS(check_frame({wide.data(), 4, 4, 11}), SAVE_DETAIL_ARGUMENT, "overlap");
    CHECK_THROWS(check_frame({nullptr, 4, 4, 0}), SAVE_DETAIL_ARGUMENT, "NULL");
}

void test_resize_logits() {
    std::vector<float> logits;
    for (int i = 0; i < 16; ++i) logits.push_back(static_cast<float>(i * 7 % 16) - 7.5F);
    const std::vector<float> tall = {-5.400000095367432F, 3.0F, 0.20000000298023224F,
        -0.3600000739097595F, 0.20000000298023224F, -2.5999999046325684F, 2.1999998092651367F, 1.0F,
        -0.19999992847442627F, 1.399999976158142F, 1.7999999523162842F, 2.200000047683716F,
        -1.399999976158142F, -1.0F, -0.6000000238418579F};
    const std::vector<float> flat = {-1.2142857313156128F, -1.1428570747375488F, -0.2857142686843872F,
        2.857142686843872F, 0.2857142686843872F, -3.0714285373687744F, -0.6428571343421936F,
        1.7142858505249023F, 2.952381134033203F, -1.5238094329833984F, -0.2857142686843872F,
        2.0714285373687744F};
    CHECK(resize_logits(logits.data(), 4, 3, 5) == tall);
    CHECK(resize_logits(logits.data(), 4, 6, 2) == flat);
    std::vector<std::uint8_t> mask(12);
    mask_of_logits(logits.data(), 4, 6, 2, mask.data(), 1e9F);
    CHECK(std::count(mask.begin(), mask.end(), 0) == static_cast<std::ptrdiff_t>(mask.size()));
    mask_of_logits(logits.data(), 4, 6, 2, mask.data());
    for (std::size_t i = 0; i < 12; ++i) CHECK(mask[i] == (flat[i] > 0 ? 255 : 0));
}

void test_resample() {
    std::vector<float> sound;
    for (int i = 0; i < 60; ++i) sound.push_back(static_cast<float>(std::sin(0.3 * i) * 0.5));
    struct Case {
        int rate_hz;
        std::size_t size;
        std::vector<float> at;  // samples 0, 1, 5, 10, 17
    };
    const Case cases[] = {
        {8000, 120, {0.00039807212F, 0.061685577F, 0.3382647F, 0.49871653F, 0.27877632F}},
        {44100, 22, {0.039299291F, 0.36147058F, -0.41902763F, 0.45774931F, 0.49916369F}},
        {44101, 22, {0.039300438F, 0.36147678F, -0.41905323F, 0.45771164F, 0.49917832F}}};
    const std::size_t places[] = {0, 1, 5, 10, 17};
    for (const Case& one : cases) {
        CHECK(resampled_size(sound.size(), one.rate_hz) == one.size);
        const save_sound given{sound.data(), sound.size(), 1, one.rate_hz};
        const std::vector<float> found = resampled(given, 0, 1000);
        CHECK(found.size() == one.size);
        for (std::size_t k = 0; k < 5; ++k) CHECK(std::fabs(found[places[k]] - one.at[k]) < 1e-6F);
        const std::vector<float> part = resampled(given, 10, 3);
        CHECK(part.size() == 3 && part[0] == found[10]);
    }
}

void test_second() {
    std::vector<float> stereo;
    for (int i = 0; i < 20'000; ++i) stereo.insert(stereo.end(), {static_cast<float>(i), 0.0F});
    std::vector<float> window(SAVE_WINDOW_SAMPLES);
    const save_sound sound{stereo.data(), 20'000, 2, 16'000};
    second(sound, 0, window.data());
    CHECK(window[0] == 0.0F && window[15'999] == 15'999 / 2.0F);
    second(sound, 7, window.data());  // past the end: the last full second
    CHECK(window[0] == 2000.0F);
    second({stereo.data(), 100, 2, 16'000}, 0, window.data());
    CHECK(window[99] == 49.5F && window[100] == 0.0F && window[15'999] == 0.0F);
    stereo[7] = NAN;
    CHECK_THROWS(second(sound, 0, window.data()), SAVE_DETAIL_DATA, "NaN");
    CHECK_THROWS(second({stereo.data(), 9, 2, 999}, 0, window.data()), SAVE_DETAIL_DATA, "999 Hz");
    CHECK_THROWS(second({stereo.data(), 9, 0, 8000}, 0, window.data()), SAVE_DETAIL_DATA, "channels");
    CHECK_THROWS(second({nullptr, 9, 1, 8000}, 0, window.data()), SAVE_DETAIL_DATA, "without samples");
    CHECK_THROWS(second({&stereo[0], 3, 2, 8000}, -1, window.data()), SAVE_DETAIL_ARGUMENT, "-1");
}

// The weights that FFmpeg divides by their sum: center 1, front sqrt(1/2), back 1/2, low frequencies 0.
void test_downmix() {
    const float front = std::sqrt(0.5F), sum = 2.0F + 2.0F * front;
    const std::vector<float> surround = mono_weights(6);
    const std::vector<float> expected = {front, front, 1.0F, 0.0F, 0.5F, 0.5F};
    for (std::size_t c = 0; c < 6; ++c) CHECK(std::fabs(surround[c] - expected[c] / sum) < 1e-6F);
    CHECK(mono_weights(6, names_of_file("OGG", 6, {}))[1] == surround[2]);  // its center is second
    CHECK(mono_weights(6, names_of_file("", 6, {2, 3, 4, 11, 14, 15})) == surround);
    CHECK(mono_weights(2) == std::vector<float>(2, 0.5F));
    CHECK(mono_weights(3) == std::vector<float>(3, 1.0F / 3.0F));
    CHECK(mono_weights(64) == std::vector<float>(64, 1.0F / 64.0F));
    CHECK(mono_weights(2, {"FL", "LFE"}) == std::vector<float>(2, 0.5F));  // left without right
    CHECK(mono_weights(2, names_of_file("", 2, {-1, 1'000'000})) == std::vector<float>(2, 0.5F));
    const float samples[] = {0.0F, 0.0F, 0.5F, NAN, 0.0F, 0.0F};  // nothing is heard of an LFE
    float mono = -1.0F;
    to_mono(samples, 1, surround, &mono);
    CHECK(std::fabs(mono - 0.5F / sum) < 1e-6F);
}

void test_what_is_heard() {
    std::vector<float> window(SAVE_WINDOW_SAMPLES, -15.5F);
    check_window(window.data());
    std::fill(window.begin(), window.end(), 1.0F);
    check_window(window.data());
    window[9] = 3.0F;  // a whisper of integers
    CHECK_THROWS(check_window(window.data()), SAVE_DETAIL_DATA, "whole numbers");
    for (const float wrong : {NAN, -INFINITY}) {
        window[9] = wrong;
        CHECK_THROWS(check_window(window.data()), SAVE_DETAIL_DATA, "NaN or infinite");
    }
    for (const float wrong : {-17.0F, 20'000.0F, 1e38F}) {  // integers of 16 bits, and worse
        window[9] = wrong;
        CHECK_THROWS(check_window(window.data()), SAVE_DETAIL_DATA, "divide samples of 16 bits");
    }
    std::vector<float> embeddings(2 * SAVE_EMBEDDING_SIZE, 1.0F);
    check_embeddings(embeddings.data(), 2);
    embeddings.back() = INFINITY;
    check_embeddings(embeddings.data(), 1);
    CHECK_THROWS(check_embeddings(embeddings.data(), 2), SAVE_DETAIL_DATA, "infinity");
    std::vector<std::uint8_t> mask(4);
    const float logits[4] = {1.0F, NAN, 1.0F, 1.0F};
    CHECK_THROWS(mask_of_logits(logits, 2, 2, 2, mask.data()), SAVE_DETAIL_PARITY, "NaN");
}

// A piece of a long sound is what resampling all of it gives there, and the rest is not looked at.
void test_ranges() {
    for (const int rate_hz : {1'000, 8'000, 11'025, 16'000, 22'050, 44'100, 44'101, 48'000, 96'000}) {
        std::vector<float> sound(static_cast<std::size_t>(4 * rate_hz + 17));
        for (std::size_t i = 0; i < sound.size(); ++i)
            sound[i] = static_cast<float>(i * i % 977) / 977.0F - 0.5F;
        const save_sound given{sound.data(), sound.size(), 1, rate_hz};
        const std::vector<float> whole = resampled(given, 0, sound.size() * 16);
        CHECK(whole.size() == resampled_size(sound.size(), rate_hz));
        for (const std::size_t begin : {0, 1, 5'000, 16'000, 31'999, 63'000}) {
            const std::vector<float> part = resampled(given, begin, 700);
            const auto at = whole.begin() + static_cast<std::ptrdiff_t>(begin);
            CHECK(part.size() == std::min<std::size_t>(700, whole.size() - begin));
            CHECK(std::equal(part.begin(), part.end(), at));
        }
        CHECK(resampled(given, whole.size(), 9).empty() && resampled(given, SIZE_MAX, 9).empty());
    }
    std::vector<float> sound(10 * 48'000, 0.25F);
    sound.back() = NAN;
    std::vector<float> window(SAVE_WINDOW_SAMPLES);
    second_at({sound.data(), sound.size(), 1, 48'000}, 3.0, window.data());
    CHECK(std::fabs(window[8'000] - 0.25F) < 1e-3F);
    CHECK_THROWS(second_at({sound.data(), sound.size(), 1, 48'000}, 9.5, window.data()),
        SAVE_DETAIL_DATA, "NaN");
}

void test_second_at() {
    std::vector<float> sound;
    for (int i = 0; i < 40'000; ++i) sound.push_back(static_cast<float>(i + 1));
    const save_sound given{sound.data(), sound.size(), 1, 16'000};
    std::vector<float> window(SAVE_WINDOW_SAMPLES);
    second_at(given, 1.0, window.data());
    CHECK(window[0] == 16'001.0F && window[15'999] == 32'000.0F);
    second_at(given, 0.5, window.data());
    CHECK(window[0] == 8'001.0F);
    second_at(given, 2.0, window.data());  // half of it is there
    CHECK(window[0] == 32'001.0F && window[7'999] == 40'000.0F && window[8'000] == 0.0F);
    second_at(given, 3.0, window.data());
    CHECK(std::count(window.begin(), window.end(), 0.0F) == SAVE_WINDOW_SAMPLES);
    for (const double wrong : {-0.1, static_cast<double>(NAN), static_cast<double>(INFINITY), 2e9})
        CHECK_THROWS(second_at(given, wrong, window.data()), SAVE_DETAIL_ARGUMENT, "wrong start");
}

void test_compare() {
    const std::vector<float> zeros(3, 0.0F);
    const auto largest = [&](std::vector<float> values) {
        return largest_difference(values.data(), zeros.data(), values.size());
    };
    CHECK(largest({0.5F, -2.0F, 0.1F}) == 2.0);
    CHECK(std::isnan(largest({0.5F, NAN, 0.1F})));
    CHECK(!std::isfinite(largest({INFINITY, NAN, 0.1F})));
    CHECK(!std::isfinite(largest({0.1F, 0.2F, -INFINITY})));
    const std::vector<float> infinite(1, INFINITY);  // equal, and nothing to agree on
    CHECK(!is_within(largest_difference(infinite.data(), infinite.data(), 1), HUGE_VAL));
    CHECK(is_within(1.0, 1.0) && !is_within(1.1, 1.0) && !is_within(HUGE_VAL, HUGE_VAL));
    CHECK(scale_of(zeros.data(), 3) == 1.0);
}

void test_last_line() {
    CHECK(last_line("only") == "only" && last_line("a\nlast one\n\n ") == "last one");
    CHECK(last_line("ab\ncd") == "cd" && last_line("\n").empty() && last_line("x\r\n") == "x");
}

void test_npy() {
    const std::vector<float> values = {1.5F, -2.0F, 3.25F, 4.0F, 5.0F, 6.0F};
    const Bytes bytes = npy_bytes("float32", {2, 3}, values.data());
    CHECK((bytes.size() - 24) % 64 == 0);
    const Npy array = parse_npy(bytes, "a.npy");
    CHECK(array.dtype == "float32" && array.shape == std::vector<std::int64_t>({2, 3}));
    CHECK(array.f32(1)[0] == 4.0F && array.size() == 6);
    CHECK_THROWS(expect(array, "float32", {3, 2}, "a.npy"), SAVE_DETAIL_BUNDLE, "(3, 2)");
    Bytes broken = bytes;
    broken.pop_back();
    CHECK_THROWS(parse_npy(broken, "a.npy"), SAVE_DETAIL_BUNDLE, "23 bytes for float32 (2, 3)");
    CHECK_THROWS(parse_npy(Bytes(64, 0), "a.npy"), SAVE_DETAIL_BUNDLE, "no .npy file");
    const auto with_header = [&](const std::string& from, const std::string& to) {
        std::string text(bytes.begin(), bytes.end());
        text.replace(text.find(from), from.size(), to);
        return Bytes(text.begin(), text.end());
    };
    for (const auto& [from, to] : {std::pair<std::string, std::string>{"<f4", "<f8"}, {"<f4", "|O "},
             {"False", "True "}, {"(2, 3)", "(2, x)"}, {"(2, 3)", "(0, 3)"}, {"(2, 3)", "(    )"},
             {"'shape'", "'shope'"}, {"(2, 3)", "2,  3 "}})
        CHECK_THROWS(parse_npy(with_header(from, to), "a.npy"), SAVE_DETAIL_BUNDLE, "cannot be read");
    const std::string huge = "(8589934592, 8589934592)";
    CHECK_THROWS(parse_npy(with_header("(2, 3), }" + std::string(15, ' '), huge), "a"),
        SAVE_DETAIL_BUNDLE, huge);
}

void test_visible() {
    CHECK(visible("\x1b]0;t\x07 a\tb\nc\xff\xc2\x9b\xe2\x80\xae \xed\xa0\x80") ==
          "\\x1b]0;t\\x07 a\tb\nc\\xff\\x9b\\u202e \\xed\\xa0\\x80");
    const std::string text = "Zo\xc3\xab \xe6\x97\xa5 \xf0\x9f\x98\x80 [red]";
    CHECK(visible(text) == text);
    CHECK(std::string(Error(SAVE_DETAIL_DATA, "what", "\x1b[31m").what()) ==
          "what\n  got:      \\x1b[31m");
}

void test_file_name() {
    for (const char* name : {"a/m.png", "a/m.png/", "a/m.png//", "a/m.png/.", "a/m.png/.//./"})
        CHECK(file_name(name) == "a/m.png");
    for (const char* same : {"", "/", ".", "..", "a/..", ".m", "a/.m", "m."}) CHECK(file_name(same) == same);
    CHECK(file_name("./") == "." && file_name("//") == "/");
}

void test_write_file() {
    namespace fs = std::filesystem;
    const fs::path folder = fs::temp_directory_path() / ("save_core_" + std::to_string(::getpid()));
    fs::create_directory(folder);
    const std::string target = (folder / "target").string(), link = (folder / "link").string();
    fs::create_symlink("target", link);
    write_file(link, "first", 5);
    write_file(link, "second", 6);
    CHECK(fs::is_symlink(link) && read_file(target, SAVE_DETAIL_DATA).size() == 6);
    write_file("/dev/null", "gone", 4);
    CHECK(fs::is_character_file("/dev/null"));
    CHECK_THROWS(write_file("/dev/full", "text", 4), SAVE_DETAIL_DATA, "No space left");
    CHECK_THROWS(write_file(folder.string(), "text", 4), SAVE_DETAIL_DATA, "directory");
    CHECK_THROWS(write_file(target + "/below", "text", 4), SAVE_DETAIL_DATA, "cannot be written");
    const auto names = fs::directory_iterator(folder);
    CHECK(std::distance(fs::begin(names), fs::end(names)) == 2);  // nothing half written
    fs::remove_all(folder);
}

}  // namespace

int main() {
    test_visible();
    test_file_name();
    test_write_file();
    test_sha256();
    test_digest_of_sums();
    test_resize_frame();
    test_resize_logits();
    test_resample();
    test_second();
    test_downmix();
    test_what_is_heard();
    test_ranges();
    test_second_at();
    test_compare();
    test_last_line();
    test_npy();
    return failures == 0 ? 0 : 1;
}
