// cleave simulate
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "cli/commands.h"
#include "cli/device_options.h"
#include "cli/format.h"
#include "cli/plan_file.h"
#include "cli/simulate_report.h"
#include "executor/chrome_trace.h"
#include "executor/lower.h"
#include "executor/program.h"
#include "graph/error.h"
#include "models/config.h"

namespace cleave {
namespace {

// A trace of more events is slow to open.
constexpr size_t kManyEvents = 1'000'000;

// One rank a stage, or all of them.
std::vector<int64_t> ranks_of(const std::string& which, const Program& program, size_t stages) {
  const int64_t stage_ranks = program.mesh.size();
  const int64_t all = stage_ranks * static_cast<int64_t>(stages);
  std::vector<int64_t> ranks;
  const bool every = which == "all" || (which == "auto" && all <= 8);
  for (int64_t r = 0; r < all; r += every ? 1 : stage_ranks) ranks.push_back(r);
  return ranks;
}

}  // namespace

void simulate_command(const SimulateArguments& a) {
  if (is_model(a.plan) && !std::filesystem::exists(a.plan)) {
    fail(
        "'{0}' is a model, and this takes a plan's file: cleave plan {0} --cluster 8xh100 -o FILE "
        "writes one",
        a.plan);
  }
  expect_other_file(a.out, a.plan);
  expect_other_file(a.dump, a.plan);
  expect_other_file(a.dump, a.out);
  const std::string text = read_file(a.plan);
  if (!is_plan_file(text)) fail("{}: no plan; cleave plan -o writes one", a.plan);
  const LoadedPlan loaded = load_plan(a.plan, text, spec_in_plan_file(a.plan, text), a.user);
  Program program = lower_unplaced(loaded.model.graph, loaded.plan,
                                   no_fuse_of(a.no_fuse, on_one_gpu(loaded.plan)));
  plan_memory(program);
  check(program);
  if (!a.dump.empty()) write_file(a.dump, to_text(program));
  const Cluster& cluster = loaded.plan.cluster;
  const TimelineOptions options = timeline_options(cluster);
  const StepTimeline timeline = simulate_step(program, cluster, options, &loaded.plan);
  if (!a.out.empty()) {
    const std::vector<int64_t> ranks = ranks_of(a.ranks, program, timeline.stages.size());
    size_t events = 0;
    for (const int64_t r : ranks)
      events += timeline.stages[static_cast<size_t>(r / program.mesh.size())].events.size();
    if (events > kManyEvents) {
      fail("-o {}: {} events of {} ranks are too many to look at; take --ranks stage", a.out,
           events, ranks.size());
    }
    write_file(a.out, chrome_trace(program, cluster, timeline, ranks));
  }
  if (a.json) {
    fmt::print("{}", simulate_json(timeline, options.overlap));
    return;
  }
  fmt::print("{}", simulate_report(loaded.model, loaded.plan, program, timeline, options.overlap,
                                   colours_wanted()));
  if (!a.out.empty()) fmt::print("\nwritten to {}\n", a.out);
  if (!a.dump.empty()) fmt::print("{}program written to {}\n", a.out.empty() ? "\n" : "", a.dump);
}

}  // namespace cleave
