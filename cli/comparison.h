// Two plans of one model side by side: where their time and memory go, and what of that makes the
// difference.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/model_spec.h"
#include "planner/plan.h"

namespace cleave {

// One number of both plans.
struct Measure {
  std::string name;  // "computing", "sending over tp", "memory of a device", "  weights"
  bool bytes = false;
  double a = 0, b = 0;
};

// "dp 2 × tp 4, ZeRO 1, 1f1b, 8 micro-batches, 12 ops of 40 recomputed": what tells plans apart.
std::string plan_words(const Graph& graph, const Plan& plan);

// The step and its parts, of the busiest stage, then the peak and its parts; what both lack is left
// out.
std::vector<Measure> measures(const TracedModel& model_a, const Plan& a, const TracedModel& model_b,
                              const Plan& b);

// Lines that say why b takes longer (or shorter) than a, the largest part first: "it computes
// 1.2 ms longer", "over tp it sends 2.1 GiB more, 3.4 ms: most of it all-reduce after ... (file)".
std::vector<std::string> reasons(const TracedModel& model_a, const Plan& a,
                                 const TracedModel& model_b, const Plan& b);

// A table of measures with these headers, and how b differs from a.
std::string measures_table(const std::vector<Measure>& measures, std::string_view name_a,
                           std::string_view name_b, bool colour);

}  // namespace cleave
