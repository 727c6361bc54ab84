// What the planner chooses for the models of the first Megatron-LM paper (Shoeybi et al., 2019,
// table 1) on 1, 2, 4 and 8 GPUs of one node, at that paper's batch of 8 sequences, as a table in
// Markdown: the plan, beside Megatron's own (tensor parallelism over all GPUs) and the next best,
// and why they lost; or by how much the model does not fit.
//
//   megatron_choices [KIND ...]          v100 and h100 unless others are named
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "cli/comparison.h"
#include "cli/plan_parts.h"
#include "cli/planned.h"
#include "graph/error.h"
#include "graph/number_text.h"

namespace cleave {
namespace {

constexpr int64_t kBatch = 8;

PlanRequest request(const std::string& model, const std::string& cluster,
                    const std::vector<std::string>& pins) {
  ModelArguments arguments;
  arguments.model = model;
  arguments.batch = kBatch;
  return request_of(arguments, cluster, "", "", pins);
}

std::string gib(double bytes) { return fmt::format("{:.1f} GiB", bytes / (1 << 30)); }

std::string what_is_kept(const Planned& p) {
  const Recomputed again = recomputed(p.model->graph, *p.result.plan);
  return again.words.empty() ? "" : "; computed again: " + again.words;
}

std::string words_without_ops(const Planned& p) {
  std::string words = plan_words(p.model->graph, *p.result.plan);
  const size_t at = words.rfind(" ops recomputed");
  if (at == std::string::npos) return words;
  const size_t begin = words.rfind(", ", at);
  return words.substr(0, begin) + words.substr(at + std::string(" ops recomputed").size());
}

// "x % slower: the largest part of the difference".
std::string beside(const Planned& chosen, const Planned& other) {
  const Plan &a = *chosen.result.plan, &b = *other.result.plan;
  const double slower = b.predicted.step_seconds / a.predicted.step_seconds - 1;
  if (std::abs(slower) < 5e-4) return "the same";
  const auto why = reasons(*chosen.model, a, *other.model, b);
  std::string text = fmt::format("{:+.1f} %", 100 * slower);
  if (!why.empty()) text += ": " + why[0].substr(0, why[0].find(';'));
  return text;
}

// Megatron's own: all GPUs for one copy of the model.
std::string megatrons(const std::string& model, const std::string& cluster, int64_t gpus,
                      const Planned& chosen) {
  if (gpus == 1) return "";
  try {
    const Planned p = planned(
        request(model, cluster, {fmt::format("tp={}", gpus), "dp=1", "pp=1", "offload=off"}));
    if (p.result.plan) return beside(chosen, p);
    return fmt::format("does not fit: {}", gib(static_cast<double>(p.result.smallest_peak)));
  } catch (const Error& e) {
    return e.what();
  }
}

std::string next_best(const Planned& p) {
  const Plan& plan = *p.result.plan;
  for (const Candidate& c : p.result.candidates) {
    const bool fits = std::isfinite(c.cost) && c.why_not.find("fit") == std::string::npos;
    if (c.why_not.empty() || !fits || c.cost < plan.certificate.cost) continue;
    return fmt::format("{}: {}", words_of(c), why_not(c, plan));
  }
  return "none that fits";
}

void row(const std::string& model, const std::string& cluster, int64_t gpus) {
  const PlanRequest asked = request(model, cluster, {});
  Planned p = planned(asked);
  if (!p.result.plan) {
    double peak = static_cast<double>(p.result.smallest_peak);
    if (peak <= p.limit) {
      const auto nearest = nearest_to_fitting(asked, 1);
      if (nearest) peak = static_cast<double>(nearest->result.plan->predicted.peak_bytes);
    }
    fmt::print("| {} | {} | does not fit | | {} of {}: {} too much | | |\n", model, gpus, gib(peak),
               gib(p.limit), gib(peak - p.limit));
    return;
  }
  const Plan& plan = *p.result.plan;
  fmt::print("| {} | {} | {}{} | {} | {} of {} | {} | {} |\n", model, gpus, words_without_ops(p),
             what_is_kept(p), seconds_text(plan.predicted.step_seconds),
             gib(static_cast<double>(plan.predicted.peak_bytes)), gib(p.limit),
             megatrons(model, cluster, gpus, p), next_best(p));
}

int run(int argc, char** argv) {
  std::vector<std::string> kinds(argv + 1, argv + argc);
  if (kinds.empty()) kinds = {"v100", "h100"};
  for (const std::string& kind : kinds) {
    fmt::print("{}, batch {}:\n\n", cluster_of_kind(kind).device.name, kBatch);
    fmt::print(
        "| model | GPUs | chosen | step | memory of a GPU | tp over all GPUs | next best |\n");
    fmt::print("|---|---|---|---|---|---|---|\n");
    for (const char* model : {"megatron:1.2b", "megatron:2.5b", "megatron:4.2b", "megatron:8.3b"}) {
      for (const int64_t gpus : {1, 2, 4, 8}) {
        row(model, fmt::format("{}x{}", gpus, kind), gpus);
        std::fflush(stdout);
      }
    }
    fmt::print("\n");
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
