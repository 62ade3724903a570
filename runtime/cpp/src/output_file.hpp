// What a program that writes files (write_file) has to care for.
#pragma once

#include <string>

namespace save_core {

// SIGINT, SIGTERM and SIGHUP end the process with 128 + their number and leave no file that is not
// renamed yet; signals that are ignored stay so, as under nohup. A closed pipe is an error of writing.
void stop_cleanly();

// The name without slashes and "/." at its end, as Python reads it: "mask.png/" and "mask.png/." are
// mask.png.
std::string file_name(const std::string& path);

// Throws Error when the output is one of the files that are read.
void check_not_input(const std::string& path, const std::string& input);

// Throws Error when the output would replace a file of the bundle in use.
void check_not_of_bundle(const std::string& path, const std::string& bundle);

// Throws Error for the name of another format than PNG. A name without suffix is fine, and so is what
// is written through, as a device.
void check_mask_name(const std::string& path);

}  // namespace save_core
