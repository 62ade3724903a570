// A real bundle through the C++ interface. Its folder is in SAVE_TEST_BUNDLE; without it: skipped.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "check.hpp"
#include "files.hpp"
#include "save_runtime.hpp"

namespace fs = std::filesystem;

namespace {

void check_refused(const fs::path& folder, int status, const std::string& part) {
    try {
        const save::Runtime runtime(folder.string());
        CHECK(!"opened");
    } catch (const save::Error& error) {
        CHECK(error.status() == status);
        CHECK(std::string(error.what()).find(part) != std::string::npos);
    }
}

void test_damage(const fs::path& bundle) {
    const fs::path copy = fs::temp_directory_path() / ("save_test_" + std::to_string(std::rand()));
    fs::copy(bundle, copy, fs::copy_options::recursive);
    save_core::Bytes audio = save_core::read_file((copy / "audio.onnx").string(), SAVE_DETAIL_DATA);
    audio[audio.size() / 2] ^= 1;
    save_core::write_file((copy / "audio.onnx").string(), audio.data(), audio.size());
    check_refused(copy, SAVE_INPUT, "bundle file was altered");
    fs::remove(copy / "audio.onnx");
    check_refused(copy, SAVE_INPUT, "bundle is incomplete");
    fs::remove(copy / "manifest.json");
    check_refused(copy, SAVE_INPUT, "not a bundle");
    fs::remove_all(copy);
}

}  // namespace

int main() {
    const char* const bundle = std::getenv("SAVE_TEST_BUNDLE");
    if (bundle == nullptr || *bundle == 0) {
        std::puts("skipped: SAVE_TEST_BUNDLE is not set");
        return 77;
    }
    test_damage(bundle);

    save::Runtime runtime(bundle);
    const save_info info = runtime.info();
    const save_parity parity = runtime.self_test();
    CHECK(parity.n_frames > 0 && parity.mask_agreement > 0.99);

    std::vector<float> tone;  // rising, so that its seconds differ
    for (int i = 0; i < 24'000; ++i) {
        const int period = 20 + i / 200;
        tone.push_back(0.2F * static_cast<float>(2 * (i % period) - period) / static_cast<float>(period));
    }
    std::vector<std::uint8_t> rgb(90 * 120 * 3);
    for (std::size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<std::uint8_t>(i * 7 % 251);
    const std::vector<float> heard = runtime.embed({tone, 16'000});
    const save::Frame frame{rgb, 120, 90};
    const std::vector<float> logits = runtime.infer(frame, heard);
    const std::vector<std::uint8_t> mask = runtime.mask(frame, heard);
    CHECK(mask.size() == 90 * 120);
    CHECK(logits.size() == static_cast<std::size_t>(info.res) * static_cast<std::size_t>(info.res));
    CHECK(runtime.embed({tone, 16'000}, 1) != heard);
    CHECK(runtime.embed_at({tone, 16'000}, 0.0) == heard);
    CHECK(runtime.embed_at({tone, 16'000}, 1.0) != runtime.embed({tone, 16'000}, 1));

    // several frames at once give what single ones give; an embedding belongs to its frame
    const std::vector<float> silence(16'000, 0.0F);
    const std::vector<float> deaf = runtime.embed({silence, 16'000});
    std::vector<float> both = heard, pair(2 * logits.size());
    both.insert(both.end(), deaf.begin(), deaf.end());
    const save_frame frames[2] = {frame.c(), frame.c()};
    save::check(save_infer_many(runtime.c(), frames, both.data(), 2, pair.data()));
    const std::vector<float> unheard = runtime.infer(frame, deaf);
    double worst = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        worst = std::max(worst, std::fabs(static_cast<double>(pair[i] - logits[i])));
        worst = std::max(worst, std::fabs(static_cast<double>(pair[logits.size() + i] - unheard[i])));
    }
    CHECK(worst < 1e-4);

    for (const float wrong : {NAN, INFINITY, 20'000.0F}) {  // no mask of what says nothing
        std::vector<float> sound = tone, embedding = heard;
        sound[500] = wrong, embedding[5] = wrong;
        const save_sound given = save::Sound{sound, 16'000}.c();
        CHECK(save_embed(runtime.c(), &given, 0, embedding.data()) == SAVE_INPUT);
        CHECK(save_last_detail() == SAVE_DETAIL_DATA);
        CHECK(save_embed_at(runtime.c(), &given, 0.0, embedding.data()) == SAVE_INPUT);
        std::vector<std::uint8_t> none(mask.size());
        const int status = save_mask(runtime.c(), frames, embedding.data(), none.data());
        CHECK(std::isfinite(wrong) || (status == SAVE_INPUT && none[0] == 0));
    }

    try {
        (void)runtime.mask({rgb, 121, 90}, heard);
        CHECK(!"accepted");
    } catch (const save::Error& error) {
        CHECK(error.detail() == SAVE_DETAIL_ARGUMENT);
    }
    try {
        (void)runtime.embed({tone, 16'000, 7});  // 24,000 samples are not those of seven channels
        CHECK(!"accepted");
    } catch (const save::Error& error) {
        CHECK(error.detail() == SAVE_DETAIL_ARGUMENT);
    }
    save_params params = save_params_default();
    params.backend = "abacus";
    save_runtime* none = nullptr;
    CHECK(save_open(bundle, &params, &none) == SAVE_INPUT && none == nullptr);  // a mistyped name
    return failures == 0 ? 0 : 1;
}
