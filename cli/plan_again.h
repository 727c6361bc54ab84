// The options with which `cleave plan` gives a plan back.
#pragma once

#include <string>
#include <vector>

#include "cli/model_spec.h"
#include "planner/plan.h"

namespace cleave {

// "300MB", "none": so many bytes, exactly, as --memory reads it.
std::string exact_bytes(double bytes);

struct PlanAgain {
  // "--mesh 2x4", "--pin pp=2 micro=8": each option with its values, as a shell reads them. Those
  // of the model and its cluster are not among them.
  std::vector<std::string> options;
  // Whether they fix all of the plan. What memory asked for (what is computed again, what is kept
  // in parts so that it fits) cannot be pinned as a whole and is searched anew, on the same mesh
  // with the same stages and micro-batches.
  bool exact = true;

  std::string text() const;  // of the options, in a line
};
PlanAgain plan_again(const TracedModel& model, const Plan& plan);

// Those of the model, likewise: "--set layers=4", "--batch 64", "--precision bf16".
std::vector<std::string> model_options(const TracedModel& model);

// The whole line: "cleave plan gpt2:124m --batch 8 --cluster 8xh100 --mesh 8 --pin micro=1".
std::string command_of(const TracedModel& model, const Plan& plan);

}  // namespace cleave
