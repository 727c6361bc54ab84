#include "planner/bundles.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "planner/cut.h"

namespace cleave {
namespace {

const Placement& before_step(const std::vector<Form>& forms, const Form& form, size_t step) {
  const int8_t axis = form.steps[step].axis;
  for (size_t i = step; i-- > 0;) {
    if (form.steps[i].axis == axis) return form.steps[i].to;
  }
  return forms[static_cast<size_t>(form.from)].placements[static_cast<size_t>(axis)];
}

}  // namespace

std::vector<int32_t> stages_of_values(const Graph& graph, const Plan& plan) {
  std::vector<int32_t> stages(graph.values().size(), 0);
  if (plan.pipeline.stages == 1) return stages;
  const std::vector<int32_t> sources = source_chunks(graph, plan.pipeline.chunk_of);
  for (size_t v = 0; v < stages.size(); ++v) {
    const ValueInfo& info = graph.values()[v];
    stages[v] = info.producer != kNoNode
                    ? plan.pipeline.stage_of(info.producer)
                    : std::max(sources[static_cast<size_t>(info.source)], 0) % plan.pipeline.stages;
  }
  return stages;
}

std::vector<Bundle> bundles(const Graph& graph, const Plan& plan, bool made_by_update) {
  struct Timed {
    size_t round;
    Bundle bundle;
  };
  std::vector<Timed> all;
  std::map<std::tuple<int32_t, size_t, StepKind, int8_t, DType, Reduction>, size_t> joined;
  const std::vector<int32_t> stages = stages_of_values(graph, plan);
  for (size_t v = 0; v < plan.values.size(); ++v) {
    const NodeId producer = graph.values()[v].producer;
    const bool updated = producer != kNoNode && graph.node(producer).phase == Phase::kUpdate;
    if (updated != made_by_update) continue;
    const std::vector<Form>& forms = plan.values[v];
    std::vector<size_t> end(forms.size(), 0);  // by form: rounds until it is made
    for (size_t f = 0; f < forms.size(); ++f) {
      const Form& form = forms[f];
      if (!form.bundled) continue;
      size_t round = end[static_cast<size_t>(form.from)];
      for (size_t i = 0; i < form.steps.size(); ++i, ++round) {
        const Step& step = form.steps[i];
        const BundledStep entry{static_cast<Value>(v), static_cast<int32_t>(f), i};
        size_t at = all.size();
        if (is_collective(step.kind)) {
          const Placement& p = before_step(forms, form, i);
          const Reduction reduction = p.is_partial() ? p.reduction : Reduction::kSum;
          at = joined
                   .emplace(std::make_tuple(stages[v], round, step.kind, step.axis,
                                            graph.values()[v].type.dtype, reduction),
                            at)
                   .first->second;
        }
        if (at == all.size()) all.push_back({round, {}});
        all[at].bundle.push_back(entry);
      }
      end[f] = round;
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Timed& a, const Timed& b) { return a.round < b.round; });
  std::vector<Bundle> result;
  for (Timed& t : all) result.push_back(std::move(t.bundle));
  return result;
}

const Step& step_of(const Plan& plan, const BundledStep& step) {
  return plan.values[static_cast<size_t>(step.value)][static_cast<size_t>(step.form)]
      .steps[step.step];
}

double start_seconds(const Plan& plan, const Bundle& bundle) {
  const Step& first = step_of(plan, bundle[0]);
  if (!is_collective(first.kind)) return 0;
  double bytes = 0;
  for (const BundledStep& b : bundle) bytes += step_of(plan, b).bytes;
  const AxisLinks links = axis_links(plan.cluster, plan.mesh, static_cast<size_t>(first.axis));
  return collective_seconds(first.kind, bytes, links) - bytes * seconds_a_byte(first.kind, links);
}

}  // namespace cleave
