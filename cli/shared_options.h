// Rows of options that several commands have.
#pragma once

#include <string>
#include <vector>

#include "cli/options.h"

namespace cleave {

inline constexpr const char* kModelHelp =
    "A built-in model (gpt2:tiny, gpt2:124m, llama:8b, ...; a wrong family lists all of them, a "
    "wrong size those of its family)";

// What every command that traces a model takes.
std::vector<Option> model_options(ModelArguments& model, const std::string& help = kModelHelp);
Option forward_option(ModelArguments& model);
Option json_option(bool& json);
Option mesh_option(std::string& mesh);
Option fp8_option(std::string& scaling);
Option no_fuse_option(std::string& no_fuse);
Option profile_option(std::string& profile);
Option dump_option(std::string& dump);
void append(std::vector<Option>& to, std::vector<Option> more);

}  // namespace cleave
