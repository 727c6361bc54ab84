// A run as one TOML file: the options of `cleave train` by their keys, which flags override.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/options.h"

namespace cleave {

// Sets the options that the file names. Throws Error with the file's name and the line: when it is
// not TOML, or has a key that no option has, or a value that is not of the option's type or range.
void read_config(const std::string& path, const std::vector<Option>& options);
// The same for a text; `path` is for its errors.
void parse_config(std::string_view text, const std::string& path,
                  const std::vector<Option>& options);

// The complete TOML: every option that has a key, with its value, and a comment that says what it
// is. Read back it gives the same values. A required one without a value is a comment. Throws Error
// when a value is no UTF-8, which TOML cannot hold.
std::string config_text(const std::vector<Option>& options);
// Of the arguments of a run.
std::string config_text(const TrainArguments& arguments);

}  // namespace cleave
