// Threads that share a runtime, beside another runtime. The bundle's folder is in SAVE_TEST_BUNDLE;
// without it: skipped. ThreadSanitizer runs it with SAVE_TEST_RACE as well, which it must report.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <thread>
#include <vector>

#include "check.hpp"
#include "save_runtime.hpp"

namespace {

constexpr int kThreads = 4, kCalls = 50;

save::Runtime open_on_one_core(const char* bundle) {
    save_params params = save_params_default();
    params.threads = 1;
    return save::Runtime(bundle, params);
}

// Each thread hears and segments, and gets its own errors.
void work(save::Runtime& runtime, const save::Frame& frame, const save::Sound& sound,
    const std::vector<std::uint8_t>& expected, std::atomic<int>& wrong, std::atomic<int>& refused) {
    const std::vector<float> no_numbers(16'000, NAN);
    for (int i = 0; i < kCalls; ++i) {
        wrong += runtime.mask(frame, runtime.embed(sound)) != expected;
        try {
            (void)runtime.embed({no_numbers, 16'000});
        } catch (const save::Error& error) {
            refused += error.detail() == SAVE_DETAIL_DATA && save_last_detail() == SAVE_DETAIL_DATA;
        }
    }
}

int planted_race() {
    int shared = 0;
    const auto count = [&shared] {
        for (int i = 0; i < 1000; ++i) ++shared;
    };
    std::thread first(count), second(count);
    first.join();
    second.join();
    return shared == 0;
}

}  // namespace

int main() {
    if (std::getenv("SAVE_TEST_RACE") != nullptr) return planted_race();
    const char* const bundle = std::getenv("SAVE_TEST_BUNDLE");
    if (bundle == nullptr || *bundle == 0) {
        std::puts("skipped: SAVE_TEST_BUNDLE is not set");
        return 77;
    }
    std::vector<float> tone(16'000);
    for (int i = 0; i < 16'000; ++i) {
        tone[static_cast<std::size_t>(i)] = 0.01F * static_cast<float>(i % 40 - 20);
    }
    std::vector<std::uint8_t> rgb(90 * 120 * 3);
    for (std::size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<std::uint8_t>(i * 7 % 251);
    const save::Sound sound{tone, 16'000};
    const save::Frame frame{rgb, 120, 90};

    save::Runtime shared = open_on_one_core(bundle), alone = open_on_one_core(bundle);
    const std::vector<std::uint8_t> expected = alone.mask(frame, alone.embed(sound));
    std::atomic<int> wrong{0}, refused{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&] { work(shared, frame, sound, expected, wrong, refused); });
    }
    threads.emplace_back([&] { work(alone, frame, sound, expected, wrong, refused); });
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(refused == (kThreads + 1) * kCalls);
    return failures == 0 ? 0 : 1;
}
