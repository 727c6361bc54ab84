// From a plan to the program that each rank executes.
#pragma once

#include <string>
#include <vector>

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

// Whether the plan is for one GPU: then its program is fused, and laid out for the GPU's kernels.
bool on_one_gpu(const Plan& plan);

// The program as the plan's devices run it, without its memory's layout, and unchecked: what a
// search asks about. `no_fuse`: fusions that are left out.
Program lower_unplaced(const Graph& graph, const Plan& plan,
                       const std::vector<std::string>& no_fuse = {});

// The instruction that carries out a step of the plan.
InstrKind kind_of(StepKind kind);

// The memory of one rank of the stage that needs most, in bytes: the peak of that program's layout,
// which is what a run takes from its device, and, faster, what is live at once at most, which is
// never above it.
int64_t peak_bytes(const Graph& graph, const Plan& plan);
int64_t live_bytes(const Graph& graph, const Plan& plan);

// The same of each stage, for the planner's options.
std::vector<int64_t> stage_peak_bytes(const Graph& graph, const Plan& plan);
std::vector<int64_t> stage_live_bytes(const Graph& graph, const Plan& plan);
// Of a program that has no layout yet.
std::vector<int64_t> program_peak_bytes(Program program);

}  // namespace cleave
