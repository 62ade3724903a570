#include "manifest_checks.hpp"

#include <initializer_list>
#include <string>

namespace save_core {
namespace {

constexpr std::int64_t kMaxWidth = 1 << 16;

struct Whole {
    const char* key;
    std::int64_t low, high;
};
constexpr Whole kWholes[] = {{"res", 16, 8192}, {"embed_dim", 1, kMaxWidth}, {"depth", 1, 64},
    {"num_heads", 1, kMaxWidth}, {"window_size", 1, 512}, {"mlp_ratio", 1, 64},
    {"image_adapter_down_kernel", 1, 31}, {"image_adapter_up_kernel", 1, 32},
    {"image_adapter_start", 0, kMaxWidth}, {"bottleneck_dim", 1, kMaxWidth},
    {"audio_hidden", 1, kMaxWidth}, {"audio_layers", 1, 16}, {"prompt_hidden", 1, kMaxWidth},
    {"audio_fc", 1, kMaxWidth}};
constexpr const char* kNumbers[] = {"image_adapter_ratio", "image_adapter_norm_eps"};
constexpr const char* kFlags[] = {"image_adapter_norm", "audio_in_proj", "audio_share_out"};
constexpr const char* kLists[] = {"global_blocks", "audio_channels"};
constexpr const char* kTexts[] = {"name", "system", "pos_interp", "window_pad", "image_adapter",
    "image_adapter_position", "image_adapter_spatial", "image_adapter_init", "decoder_adapter",
    "post_fusion", "audio_mode", "audio_inject", "audio_act", "prompt_source", "prompt_act",
    "prompt_tokens", "prompt_scale"};
constexpr const char* kSkip = "image_adapter_skip";  // a flag in older files

// A list of objects, each with a text `name`; where they are there, `texts` and `numbers`.
void check_rows(const Json& object, const char* key, const char* name,
    std::initializer_list<const char*> texts, std::initializer_list<const char*> numbers) {
    if (!object.contains(key)) return;
    for (const Json& row : list(object, key)) {
        (void)text(row, name);
        for (const char* one : texts) (void)text_or_empty(row, one);
        for (const char* one : numbers)
            if (!is_absent(row, one)) (void)number(row, one);
    }
}

}  // namespace

void check_config(const Json& config) {
    const auto has = [&](const char* key) { return config.contains(key); };
    for (const Whole& one : kWholes)
        if (has(one.key)) (void)whole(config[one.key], one.key, one.low, one.high);
    for (const char* key : kNumbers) {
        if (!has(key)) continue;
        const double found = number(config, key);
        if (found < 1e-12 || found > 16.0) refuse_json(std::string(key) + ", allowed: 1e-12 to 16");
    }
    for (const char* key : kFlags)
        if (has(key)) (void)flag(config, key);
    for (const char* key : kTexts)
        if (has(key)) (void)text(config, key);
    if (has(kSkip) && !config[kSkip].is_boolean()) (void)text(config, kSkip);
    for (const char* key : kLists)
        if (has(key))
            for (const Json& value : list(config, key)) (void)whole(value, key, 0, kMaxWidth);
}

void check_notes(const Json& root) {
    if (root.contains("merge"))
        check_rows(object_of(root, "merge"), "rewrites", "name", {},
            {"macs_before", "macs_after", "max_rel_diff"});
    const Json& precision = object_of(root, "precision");
    check_rows(precision, "islands", "module", {"reason"}, {"value"});
    if (!is_absent(precision, "floats"))
        check_rows(object_of(precision, "floats"), "islands", "module", {"reason"}, {"value"});
}

}  // namespace save_core
