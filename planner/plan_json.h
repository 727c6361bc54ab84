// A plan as JSON: what `cleave plan --json` prints, and what a saved plan is made again from.
#pragma once

#include <nlohmann/json.hpp>

#include "planner/plan.h"
#include "planner/planner.h"

namespace cleave {

inline constexpr int kPlanFormatVersion = 1;

// Everything that docs/plan.md lists but "model" and "regions", which the command adds.
nlohmann::ordered_json plan_to_json(const Graph& graph, const Plan& plan);

// How a saved plan changes the traced graph: the plan is for rewritten(traced, this). Throws Error,
// one line, when the file's nodes are none of the traced graph's forward.
Rewrite rewrite_in_plan(const nlohmann::ordered_json& json, const Graph& traced);

// Makes a saved plan again: the graph must be the one it was made for (its hash is compared), the
// choices are taken from the file, and every cost is computed anew. What the search compared is
// there when the plan costs what it did. `graph`, `chunk_of`: as rewrite_in_plan says. Throws
// Error, one line, when the text is not a plan, or a plan for another graph.
Plan plan_from_json(const nlohmann::ordered_json& json, const Graph& graph,
                    const PlannerOptions& options, const std::vector<int32_t>& chunk_of = {});

// 64 bits of everything a plan depends on in a graph: ops, factors, sizes, attributes, connections,
// sources. Names of scopes and source lines are left out.
uint64_t graph_hash(const Graph& graph);

}  // namespace cleave
