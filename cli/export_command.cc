// cleave export
#include <fmt/ranges.h>

#include <cstdio>

#include "cli/commands.h"
#include "cli/export_plan.h"
#include "cli/format.h"
#include "graph/error.h"

namespace cleave {

void export_command(const ExportArguments& a) {
  expect_other_file(a.out, a.plan);
  const std::string text = read_file(a.plan);
  const LoadedPlan loaded = load_plan(a.plan, text, spec_in_plan_file(a.plan, text), a.user);
  const Exported e = exported(loaded, a.to);
  const Written written = a.to == "megatron"  ? megatron_flags(loaded, e, a.user)
                          : a.to == "dtensor" ? dtensor_script(loaded, e)
                          : a.to == "hf-tp"   ? hf_tp_plan(loaded, e)
                                              : deepspeed_config(loaded, e);
  if (!written.notes.empty()) {
    fmt::print(stderr, "cleave: note: --to {}: {}\n", a.to, fmt::join(written.notes, "; "));
  }
  if (a.out.empty()) {
    fmt::print("{}", written.text);
    return;
  }
  write_file(a.out, written.text);
  fmt::print("written to {}\n", a.out);
}

}  // namespace cleave
