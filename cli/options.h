// The options of every command, one row each: from it come the flag, the key in a run's TOML, the
// help, the check of what was written, and the documentation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "cli/arguments.h"

namespace cleave {

struct Option {
  // Where the value goes, which also says what it is: an optional is a flag whose value may be left
  // out (""), a list is key=value pairs.
  using Target = std::variant<std::string*, int64_t*, double*, bool*, std::optional<std::string>*,
                              std::vector<std::string>*>;

  std::string flag;       // "--steps", "-o,--out", or the name of what stands without one: "MODEL"
  std::string key = {};   // "train.steps"; empty: not in a TOML
  std::string type = {};  // of the value, in --help: "N"
  std::string help;       // what it is, in a few words
  Target target;
  // What the default stands for, where no value says it: "a tenth of the rate". Its word may be
  // written too; it is stored as "" or as a number below at_least. Empty: the default is a value.
  std::string automatic = {};
  std::string automatic_word = "auto";
  double at_least = -1e300;               // of a number
  bool above = false;                     // of a number: above at_least
  std::vector<std::string> choices = {};  // of a string; empty: any
  bool required = false;
  bool keys_repeat = false;  // of pairs: all of one key count; else the last

  std::string name() const;     // "--out": the long one; "MODEL"
  std::string section() const;  // of the key: "train"
  std::string entry() const;    // of the key: "steps"
};

// Rows that point into the arguments, which must outlive them.
std::vector<Option> options_of(TraceArguments& arguments);
std::vector<Option> options_of(RegionsArguments& arguments);
std::vector<Option> options_of(PlanArguments& arguments);
std::vector<Option> options_of(ExplainArguments& arguments);
std::vector<Option> options_of(DiffArguments& arguments);
std::vector<Option> options_of(FitArguments& arguments);
std::vector<Option> options_of(ExportArguments& arguments);
std::vector<Option> options_of(ViewArguments& arguments);
std::vector<Option> options_of(TrainArguments& arguments);
std::vector<Option> options_of(BenchArguments& arguments);
std::vector<Option> options_of(GenerateArguments& arguments);
// Of `cleave checkpoint ls`, verify and export.
std::vector<Option> options_of(CalibrateArguments& arguments);
std::vector<Option> options_of(SimulateArguments& arguments);
std::vector<Option> options_of(DoctorArguments& arguments);
std::vector<Option> ls_options(CheckpointArguments& arguments);
std::vector<Option> verify_options(CheckpointArguments& arguments);
std::vector<Option> export_options(CheckpointArguments& arguments);

// The value that the target has, as it is written: "0.001", "auto", "layers=2 heads=4", "true".
std::string text_of(const Option& option);
// "100", "a tenth of the rate", "required", when the target has not been set yet; empty for what is
// off unless it is given.
std::string default_text(const Option& option);

// Stores what was written; a pair replaces an earlier one with its key. Throws Error, beginning
// with `where` ("--steps"), when it is not of the option's type or out of its range.
void set_text(const Option& option, const std::string& text, std::string_view where);

}  // namespace cleave
