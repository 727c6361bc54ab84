// The published runs of Megatron-LM as the planner would have run them: for each, the plan that it
// finds on the same GPUs, for the same batch, beside the published configuration planned by the
// same predictor; and for each choice in which the two differ what it saves: the plan found, but
// with that one choice as published.
//
//   megatron_free [MODEL ...]
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <optional>

#include "benchmarks/benchmark.h"
#include "benchmarks/megatron_rows.h"
#include "cli/comparison.h"
#include "cli/format.h"
#include "cli/plan_parts.h"
#include "executor/lower.h"
#include "graph/error.h"
#include "graph/number_text.h"
#include "planner/planner.h"

namespace cleave {
namespace {

struct Planned {
  TracedModel model;
  std::optional<Plan> plan;
  std::string why_not;  // there is none
};

Planned plan_row(const Row& row, const std::vector<std::string>& pins, bool any_memory) {
  PlannerOptions options;
  if (any_memory) options.memory_limit = std::numeric_limits<double>::infinity();
  options.space.stages = options.space.recompute = true;
  options.space.max_axes = 3;
  options.live_bytes = stage_live_bytes;
  options.peak_bytes = stage_peak_bytes;
  options.trace = [&](int64_t micro_batches) {
    TraceOptions how;
    how.dtype = DType::kBF16;
    how.optimizer.micro_batches = micro_batches;
    ModelConfig c = config_of(row, row.layers, row.batch / micro_batches);
    c.tied = true;
    return std::make_shared<const Graph>(trace("gpt", c, gpt, how));
  };
  options.pins = parse_pins(pins, "megatron_free");
  const auto graph = options.trace(options.pins.micro_batches.value_or(1));
  Planned p;
  try {
    PlanResult result = find_plan(*graph, cluster_of(row), options);
    p.plan = std::move(result.plan);
    if (p.plan) {
      p.model.graph = *result.graph;
    } else {
      p.why_not = fmt::format("does not fit: {} a GPU at least",
                              bytes_text(static_cast<double>(result.smallest_peak)));
    }
  } catch (const Error& e) {
    p.why_not = fmt::format("nothing: {}", e.what());
  }
  return p;
}

// One choice of a configuration, as pins say it.
struct Choice {
  std::string name, published, found;
  std::vector<std::string> as_published, as_found;
};

int64_t axis_size(const Plan& plan, std::string_view role) {
  int64_t size = 1;
  for (const MeshAxis& a : plan.mesh.axes) {
    if (a.name.starts_with(role)) size *= a.size;
  }
  return size;
}

std::vector<Choice> choices_of(const Row& row, const Planned& found) {
  const Plan& plan = *found.plan;
  const Pipeline& p = plan.pipeline;
  const int64_t dp = row.gpus / (row.tp * row.pp), m = row.batch / (dp * row.micro);
  std::vector<Choice> all;
  const auto words = [](int64_t pp, int64_t chunks, std::string_view schedule) {
    if (pp == 1) return std::string("no pipeline");
    return fmt::format("pp {} {}{}", pp, schedule, chunks > 1 ? fmt::format(" of {}", chunks) : "");
  };
  const auto axes_words = [](int64_t data, int64_t inner) {
    std::string text;
    if (data > 1) text += fmt::format("dp {}, ", data);
    if (inner > 1) text += fmt::format("tp {}, ", inner);
    return text;
  };
  const std::string mesh_text =
      plan.mesh.axes.size() > 2 || axis_size(plan, "dp") * axis_size(plan, "tp") != plan.mesh.size()
          ? plan.mesh.to_string() + ", "
          : axes_words(axis_size(plan, "dp"), axis_size(plan, "tp"));
  const std::string_view schedule = row.chunks > 1 ? "interleaved" : "1f1b";
  const auto pipeline_pins = [](int64_t pp, int64_t chunks, std::string_view kind) {
    std::vector<std::string> pins = {fmt::format("pp={}", pp)};
    if (pp == 1) return pins;
    pins.push_back(fmt::format("chunks={}", chunks));
    pins.push_back(fmt::format("schedule={}", kind));
    return pins;
  };
  all.push_back({"mesh and stages",
                 fmt::format("{}{}", axes_words(dp, row.tp), words(row.pp, row.chunks, schedule)),
                 mesh_text + words(p.stages, p.chunks, name_of(p.schedule)),
                 {fmt::format("dp={}", dp), fmt::format("tp={}", row.tp)},
                 {}});
  for (const auto& pin : pipeline_pins(row.pp, row.chunks, schedule)) {
    all.back().as_published.push_back(pin);
  }
  all.back().as_found = pipeline_pins(p.stages, p.chunks, name_of(p.schedule));
  for (std::string_view role : {"dp", "tp", "cp"}) {
    const int64_t size = axis_size(plan, role);
    if (size > 1) all.back().as_found.push_back(fmt::format("{}={}", role, size));
  }
  all.push_back({"micro-batches",
                 fmt::format("{}", m),
                 fmt::format("{}", found.model.graph.micro_batches),
                 {fmt::format("micro={}", m)},
                 {fmt::format("micro={}", found.model.graph.micro_batches)}});
  const std::string_view recompute = row.year == 2021 ? "full" : "selective";
  const Recomputed again = recomputed(found.model.graph, plan);
  all.push_back({"recomputation",
                 std::string(recompute),
                 again.words.empty() ? "nothing" : again.words,
                 {fmt::format("recompute={}", recompute)},
                 {}});
  all.push_back({"ZeRO", "0", fmt::format("{}", plan.zero), {"zero=0"}, {}});
  return all;
}

std::string step_words(const Planned& p) {
  return fmt::format("{:.2f} s, {} a GPU", p.plan->predicted.step_seconds,
                     bytes_text(static_cast<double>(p.plan->predicted.peak_bytes)));
}

// Returns whether the plan found is no slower.
bool compare(const Row& row) {
  std::vector<std::string> pins;
  const int64_t dp = row.gpus / (row.tp * row.pp);
  pins = {fmt::format("tp={}", row.tp), fmt::format("dp={}", dp), fmt::format("pp={}", row.pp)};
  if (row.pp > 1) {
    pins.push_back(fmt::format("chunks={}", row.chunks));
    pins.push_back(row.chunks > 1 ? "schedule=interleaved" : "schedule=1f1b");
  }
  pins.push_back(fmt::format("micro={}", row.batch / (dp * row.micro)));
  pins.push_back(row.year == 2021 ? "recompute=full" : "recompute=selective");
  pins.push_back("zero=0");
  Planned published = plan_row(row, pins, false);
  std::string note;
  if (!published.plan) {
    note = published.why_not;
    published = plan_row(row, pins, true);
  }
  const Planned found = plan_row(row, {}, false);
  fmt::print("{} ({}), {} GPUs, batch {}\n", row.name, row.year, row.gpus, row.batch);
  if (!published.plan || !found.plan) {
    fmt::print("  published: {}\n  found: {}\n", published.plan ? "ok" : published.why_not,
               found.plan ? "ok" : found.why_not);
    return false;
  }
  const double a = published.plan->predicted.step_seconds, b = found.plan->predicted.step_seconds;
  fmt::print("  published  {}: {}{}\n", plan_words(published.model.graph, *published.plan),
             step_words(published), note.empty() ? "" : " (" + note + ")");
  fmt::print("  found      {}: {}; {:+.1f} %, bound {:.2f} s; searched in {:.0f} s\n",
             plan_words(found.model.graph, *found.plan), step_words(found), 100 * (b / a - 1),
             found.plan->certificate.lower_bound, found.plan->search_seconds);
  for (const std::string& line :
       reasons(published.model, *published.plan, found.model, *found.plan)) {
    fmt::print("    {}\n", line);
  }
  std::fflush(stdout);
  const std::vector<Choice> choices = choices_of(row, found);
  for (const Choice& c : choices) {
    if (c.published == c.found) continue;
    std::vector<std::string> with = c.as_published;
    for (const Choice& other : choices) {
      // On another mesh as many micro-batches as are best there.
      if (&c == &choices[0] && &other == &choices[1]) continue;
      if (&other != &c) with.insert(with.end(), other.as_found.begin(), other.as_found.end());
    }
    const Planned back = plan_row(row, with, false);
    if (!back.plan) {
      fmt::print("  {}: {} instead of {}: as published, {}\n", c.name, c.found, c.published,
                 back.why_not);
      continue;
    }
    fmt::print("  {}: {} instead of {} saves {:.1f} %\n", c.name, c.found, c.published,
               100 * (back.plan->predicted.step_seconds / b - 1));
    for (const std::string& line : reasons(found.model, *found.plan, back.model, *back.plan)) {
      fmt::print("    as published, {}\n", line);
    }
    std::fflush(stdout);
  }
  return b <= a * (1 + 1e-9);
}

int run(int argc, char** argv) {
  const std::vector<std::string> names(argv + 1, argv + argc);
  int rows = 0, slower = 0;
  for (const Row& row : kRows) {
    if (!names.empty() && std::find(names.begin(), names.end(), row.name) == names.end()) continue;
    ++rows;
    slower += !compare(row);
    std::fflush(stdout);
  }
  fmt::print("{} of {} rows: the plan found is predicted no slower than the published one\n",
             rows - slower, rows);
  return slower == 0 ? 0 : 1;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
