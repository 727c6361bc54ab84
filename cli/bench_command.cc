// cleave bench
#include <cstdio>

#include "cli/benching.h"
#include "cli/commands.h"
#include "cli/device_options.h"
#include "cli/format.h"
#include "cli/profile.h"

namespace cleave {

void bench_command(const BenchArguments& a) {
  expect_other_file(a.dump, a.profile);
  if (!a.profile.empty()) expect_writable(a.profile);
  const std::unique_ptr<PreparedBench> prepared = prepare_bench(a);
  if (!a.dump.empty()) write_file(a.dump, to_text(prepared->program()));
  tell_shared_cores(a.devices);
  const BenchResult result = measure(*prepared, a.warm_up, a.steps);
  if (!a.profile.empty()) {
    write_profile(a.profile, prepared->program(), prepared->plan, result.recorded);
  }
  const std::string text =
      a.json ? bench_json(*prepared, result) : bench_report(*prepared, result, colours_wanted());
  std::fwrite(text.data(), 1, text.size(), stdout);
}

}  // namespace cleave
