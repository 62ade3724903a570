// Hashing, arrays, resizing, resampling: against published values, Pillow 13.0 and torchaudio 2.11.
#include <cmath>
#include <string>
#include <vector>

#include "check.hpp"
#include "npy.hpp"
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
    Sha256 pieces;
    for (std::size_t at = 0, n = 1; at < million.size(); at += n, n = n % 97 + 1)
        pieces.update(million.data() + at, std::min(n, million.size() - at));
    CHECK(pieces.hex() == expected);
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
        const std::vector<float> found = resampled(sound, one.rate_hz, 0, 1000);
        CHECK(found.size() == one.size);
        for (std::size_t k = 0; k < 5; ++k) CHECK(std::fabs(found[places[k]] - one.at[k]) < 1e-6F);
        const std::vector<float> part = resampled(sound, one.rate_hz, 10, 3);
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

}  // namespace

int main() {
    test_sha256();
    test_resize_frame();
    test_resize_logits();
    test_resample();
    test_second();
    test_npy();
    return failures == 0 ? 0 : 1;
}
