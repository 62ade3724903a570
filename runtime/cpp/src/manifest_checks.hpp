// Entries of a manifest that no C++ code uses, refused where Python refuses them.
#pragma once

#include "json.hpp"

namespace save_core {

// Throws Error(SAVE_DETAIL_BUNDLE) for a value of config with another type or range than
// save_deploy/config.py accepts. Keys that are not known here are passed over.
void check_config(const Json& config);

// Throws Error(SAVE_DETAIL_BUNDLE) for rows of "merge" and "precision" with values of another type.
void check_notes(const Json& root);

}  // namespace save_core
