// From a traced model and a cluster to a plan that fits, measured by the executor's own layout.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "cli/model_spec.h"
#include "planner/planner.h"

namespace cleave {

// Nothing that was searched fits in memory: exit status 3.
class DoesNotFit : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// `mesh`: empty: chosen. `memory`: empty: the cluster's own; "none": no limit. `no_fuse`: what a
// GPU's program is not fused by. The graph must outlive the options.
PlannerOptions planner_options(const Graph& graph, const std::string& mesh,
                               const std::string& memory,
                               const std::vector<std::string>& no_fuse = {});

// What is planned when no precision is asked for.
DType planned_precision(const Cluster& cluster);
// Why fp16, in which training needs more than a plan says, was taken; empty: it was not, or was
// asked for.
std::string precision_note(const ModelArguments& model, const Cluster& cluster);

// Of a result without a plan, when memory is not why: the reason of a mesh, one that names a pin if
// there is any. Empty: none is known.
std::string why_impossible(const PlannerOptions& options, const PlanResult& result);

// What PlanResult says when it has no plan, as DoesNotFit, with a cluster on which the graph fits
// if one is found within seconds; Error when no mesh splits the model. `without_limit`: whether
// there may be a plan when memory is no limit.
[[noreturn]] void throw_no_plan(const std::string& model, const Graph& graph,
                                const Cluster& cluster, const PlannerOptions& options,
                                const PlanResult& result, bool without_limit = true);

}  // namespace cleave
