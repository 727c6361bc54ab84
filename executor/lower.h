// From a plan to the program that each rank executes.
#pragma once

#include "executor/fuse.h"
#include "executor/program.h"
#include "planner/plan.h"

namespace cleave {

// Lowers the graph as the plan says: forms become tensors, their steps collectives and local cuts,
// bundled steps single collectives, ops whose whole factor is split their expansions. In-place
// versions share a buffer where nothing reads the old one later. The program is laid out
// (plan_memory) and checked (check) before it is returned.
// Instructions are joined before when `fusing` says so.
Program lower(const Graph& graph, const Plan& plan, const FuseOptions& fusing = {});

// The same program without its memory's layout, and unchecked: what a search asks about.
Program lower_unplaced(const Graph& graph, const Plan& plan);

// The instruction that carries out a step of the plan.
InstrKind kind_of(StepKind kind);

// The memory of one rank of the stage that needs most, in bytes: the peak of the lowered program's
// layout, and, faster, what is live at once at most, which is never above it.
int64_t peak_bytes(const Graph& graph, const Plan& plan);
int64_t live_bytes(const Graph& graph, const Plan& plan);

// The same of each stage, for the planner's options.
std::vector<int64_t> stage_peak_bytes(const Graph& graph, const Plan& plan);
std::vector<int64_t> stage_live_bytes(const Graph& graph, const Plan& plan);

}  // namespace cleave
