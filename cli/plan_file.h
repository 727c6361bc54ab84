// The JSON that the command writes and reads. Text on both sides, so that only plan_file.cc needs
// the JSON library.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "cli/model_spec.h"
#include "planner/plan.h"
#include "planner/planner.h"

namespace cleave {

// docs/plan.md: the plan, what to trace to make it again, and the model's regions.
std::string plan_file_text(const TracedModel& model, const Plan& plan);

// What a checkpoint's run.json says was trained: {"model": as in a plan, "tokenizer": a path or
// "bytes"}.
std::string job_text(const TracedModel& model, const std::string& tokenizer);

// The same, read from the run.json of the checkpoint at this path; other fields are not looked at.
// Throws Error, naming the checkpoint.
struct TrainedJob {
  ModelSpec model;
  std::string tokenizer;
};
TrainedJob job_in_checkpoint(const std::string& checkpoint, std::string_view run_json);

struct LoadedPlan {
  TracedModel model;
  Plan plan;
};

// Whether this is the text of a plan, rather than of a graph.
bool is_plan_file(std::string_view text);

// What a plan file says should be traced. Throws Error, beginning with the path.
ModelSpec spec_in_plan_file(const std::string& path, std::string_view text);
// Traces the model again and makes the plan again on it. `spec`: as read, with what training may
// change (the optimizer's numbers).
LoadedPlan load_plan(const std::string& path, std::string_view text, ModelSpec spec,
                     const UserModel* user);

// {"model", "regions"}: docs/commands.md.
std::string regions_text(const TracedModel& model);
// {"fits": false, ...}: what a search without a plan found.
std::string no_plan_text(const TracedModel& model, const Cluster& cluster, double limit,
                         const PlanResult& result);

}  // namespace cleave
