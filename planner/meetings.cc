#include "planner/meetings.h"

#include <map>

#include "planner/bundles.h"
#include "planner/of_weights.h"

namespace cleave {
namespace {

// Seconds of the start of its bundle, by step: a bundle starts once for all its steps, and each is
// given its share, by bytes.
std::map<const Step*, double> starts(const Graph& graph, const Plan& plan) {
  std::map<const Step*, double> result;
  for (bool made_by_update : {false, true}) {
    for (const Bundle& bundle : bundles(graph, plan, made_by_update)) {
      const double seconds = start_seconds(plan, bundle);
      double bytes = 0;
      for (const BundledStep& b : bundle) bytes += step_of(plan, b).bytes;
      for (const BundledStep& b : bundle) {
        const Step& step = step_of(plan, b);
        if (bytes > 0) result[&step] = seconds * step.bytes / bytes;
      }
    }
  }
  return result;
}

}  // namespace

std::vector<Meeting> meetings(const Graph& graph, const Plan& plan) {
  const std::vector<bool> of_weights = values_of_weights(graph);
  const std::vector<int32_t> stages = stages_of_values(graph, plan);
  const std::map<const Step*, double> start_of = starts(graph, plan);
  std::vector<Meeting> all;
  const auto add = [&](Meeting m) {
    if (!is_collective(m.step->kind)) return;
    // What the forward and the backward move, they move in every micro-batch.
    m.times = m.phase == Phase::kUpdate || m.bundled ? 1 : graph.micro_batches;
    m.bytes = static_cast<double>(m.times) * m.step->bytes;
    m.seconds = static_cast<double>(m.times) * m.step->seconds;
    if (const auto start = start_of.find(m.step); start != start_of.end()) {
      m.seconds += start->second;
    }
    all.push_back(m);
  };
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const auto node = static_cast<NodeId>(n);
    for (const Step& step : plan.nodes[n].inner) {
      add({.step = &step,
           .phase = graph.node(node).phase,
           .stage = plan.pipeline.stage_of(node),
           .weights = works_on_weights(graph, of_weights, node),
           .node = node});
    }
  }
  for (size_t v = 0; v < plan.values.size(); ++v) {
    for (const Form& form : plan.values[v]) {
      for (const Step& step : form.steps) {
        add({.step = &step,
             .phase = form.phase,
             .stage = stages[v],
             .weights = form.bundled || counts_as_weights(graph, of_weights, static_cast<Value>(v)),
             .bundled = form.bundled,
             .value = static_cast<Value>(v)});
      }
    }
  }
  return all;
}

}  // namespace cleave
