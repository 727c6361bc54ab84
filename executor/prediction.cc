#include "executor/prediction.h"

#include <algorithm>
#include <cmath>

#include "executor/instr_costs.h"
#include "executor/lower.h"
#include "executor/memory_layout.h"
#include "graph/error.h"
#include "graph/number_text.h"

namespace cleave {
namespace {

std::optional<RunSeconds> without(const Graph& graph, const Plan& plan,
                                  const std::vector<std::string>& no_fuse) {
  const bool hosted =
      std::find(plan.on_host.begin(), plan.on_host.end(), true) != plan.on_host.end();
  if (!on_one_gpu(plan) || hosted) return std::nullopt;
  return run_seconds(graph, lower_unplaced(graph, plan, no_fuse), plan.cluster);
}

}  // namespace

RunSeconds run_seconds(const Graph& graph, const Program& program, const Cluster& cluster) {
  const InstrCosts costs(program, cluster);
  RunSeconds seconds{.nodes = std::vector<double>(graph.nodes().size(), 0)};
  std::vector<NodeId> makers(program.tensors.size(), kNoNode);  // by tensor
  for (size_t i = 0; i < program.instrs.size(); ++i) {
    const Instr& instr = program.instrs[i];
    // A copy that lowering has added counts with what made its operand.
    NodeId node = instr.node;
    if (node == kNoNode && !instr.in.empty()) node = makers[static_cast<size_t>(instr.in[0])];
    for (const TensorId t : instr.out) makers[static_cast<size_t>(t)] = node;
    if (node != kNoNode) seconds.nodes[static_cast<size_t>(node)] += costs.seconds(i);
    // What begins a step runs once, as the update does.
    const Phase phase = instr.part == Part::kForward ? Phase::kForward
                        : once_a_step(instr.part)    ? Phase::kUpdate
                                                     : Phase::kBackward;
    seconds.phases[static_cast<size_t>(phase)] += costs.seconds(i);
  }
  return seconds;
}

std::optional<RunSeconds> run_seconds(const Graph& graph, const Plan& plan) {
  return without(graph, plan, {});
}

void ask_program(PlannerOptions& options, const std::vector<std::string>& no_fuse) {
  options.live_bytes = stage_live_bytes;
  options.peak_bytes = stage_peak_bytes;
  options.run_seconds = [no_fuse](const Graph& graph, const Plan& plan) {
    return without(graph, plan, no_fuse);
  };
  if (no_fuse.empty()) return;
  options.live_bytes = [no_fuse](const Graph& graph, const Plan& plan) {
    return least_peak_bytes(lower_unplaced(graph, plan, no_fuse));
  };
  options.peak_bytes = [no_fuse](const Graph& graph, const Plan& plan) {
    return program_peak_bytes(lower_unplaced(graph, plan, no_fuse));
  };
}

std::string beyond_prediction(double predicted, double measured) {
  return predicted > 0 ? fmt::format("{:+.1f} %", 100 * (measured / predicted - 1)) : "";
}

std::string beyond_prediction(int64_t predicted, int64_t measured) {
  return predicted == measured ? "exact" : fmt::format("{:+} bytes", measured - predicted);
}

std::string prediction_line(double predicted_seconds, int64_t predicted_bytes,
                            double measured_seconds, int64_t measured_bytes) {
  const auto size = [](int64_t bytes) { return bytes_text(static_cast<double>(bytes)); };
  return fmt::format("predicted {} a step, {}; measured {} ({}), {} ({})",
                     seconds_text(predicted_seconds), size(predicted_bytes),
                     seconds_text(measured_seconds),
                     beyond_prediction(predicted_seconds, measured_seconds), size(measured_bytes),
                     beyond_prediction(predicted_bytes, measured_bytes));
}

}  // namespace cleave
