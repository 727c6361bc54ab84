// What a run of a plan's program is expected to take, and how far a measured one is from it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "executor/program.h"
#include "planner/planner.h"

namespace cleave {

// For the planner's options: of a plan for one GPU, whose program is fused; nothing for others.
std::optional<RunSeconds> run_seconds(const Graph& graph, const Plan& plan);

// The program's own, by InstrCosts: one rank, one stage, nothing on the host.
RunSeconds run_seconds(const Graph& graph, const Program& program, const Cluster& cluster);

// The planner's options that ask the program that will run: its memory, and its seconds.
// `no_fuse`: fusions that are left out.
void ask_program(PlannerOptions& options, const std::vector<std::string>& no_fuse = {});

// "+2.3 %": how much more was measured than predicted.
std::string beyond_prediction(double predicted, double measured);
// "exact", or "+64 bytes".
std::string beyond_prediction(int64_t predicted, int64_t measured);

// "predicted 120 ms a step, 31.2 GiB; measured 123 ms (+2.3 %), 31.2 GiB (exact)".
std::string prediction_line(double predicted_seconds, int64_t predicted_bytes,
                            double measured_seconds, int64_t measured_bytes);

}  // namespace cleave
