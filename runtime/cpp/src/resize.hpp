// Bilinear resizing with antialias, bit for bit what Pillow does (save_deploy/data/transforms.py).
#pragma once

#include <cstdint>
#include <vector>

#include "save_runtime.h"

namespace save_core {

constexpr std::int64_t kMaxPixels = 178'956'970;  // where Pillow refuses a picture as a bomb
constexpr int kMaxSide = 65'535;

// Throws Error unless the frame has pixels and an allowed size.
void check_frame(const save_frame& frame);
void check_size(int width, int height, save_detail detail, const char* what);

// frame -> (res,res,3).
void resize_frame(const save_frame& frame, int res, std::uint8_t* image);

// logits (side,side) -> mask (height,width): 255 where the logit, resized in float, is above 0.
// Throws Error for logits that are not finite: no mask can be made of them.
void mask_of_logits(const float* logits, int side, int width, int height, std::uint8_t* mask,
    float threshold = 0.0F);

// logits (side,side) -> (height,width) floats.
std::vector<float> resize_logits(const float* logits, int side, int width, int height);

}  // namespace save_core
