#include "planner/roles.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "planner/made_once.h"

namespace cleave {
namespace {

std::string role_of_axis(const Graph& graph, const Plan& plan, size_t axis) {
  std::map<std::string, double> work = {{"rep", 0}};  // flops by role
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase == Phase::kUpdate) continue;
    const MemberSplit::OnAxis& on = plan.nodes[n].axes[axis];
    std::string role = "rep";
    if (on.factor >= 0) {
      const ClassId c =
          plan.dimensions->factors[n][static_cast<size_t>(on.factor)][static_cast<size_t>(on.atom)]
              .dimension_class;
      const std::string& data = plan.dimensions->classes[static_cast<size_t>(c)].role;
      role = data == "batch" ? "dp" : data == "sequence" ? "cp" : "tp";
    }
    const auto in = graph.input_types(node);
    work[role] += node.op->flops(Graph::call(node, in));
  }
  return std::max_element(work.begin(), work.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

}  // namespace

void name_axes(const Graph& graph, Plan& plan) {
  std::map<std::string, int> seen;
  for (size_t a = 0; a < plan.mesh.axes.size(); ++a) {
    std::string name = role_of_axis(graph, plan, a);
    if (plan.roles[a] != AxisRole::kAny) name = name_of(plan.roles[a]);
    const int before = seen[name]++;
    plan.mesh.axes[a].name = before == 0 ? name : fmt::format("{}{}", name, before + 1);
  }
  // A stage is reached when more than half of the bytes are split over a batch axis.
  const KeptInParts parts = kept_in_parts(graph, plan);
  plan.zero = parts.parameters > 0.5 ? 3 : parts.states > 0.5 ? 1 : 0;
}

KeptInParts kept_in_parts(const Graph& graph, const Plan& plan) {
  const auto batch = [](const Source&, const MeshAxis& axis) {
    return axis.name.starts_with("dp") || axis.name.starts_with("ep");
  };
  return kept_in_parts(
      graph, plan, [](const Source&) { return true; }, batch);
}

KeptInParts kept_in_parts(const Graph& graph, const Plan& plan,
                          const std::function<bool(const Source&)>& counted,
                          const std::function<bool(const Source&, const MeshAxis&)>& keeps) {
  const auto in_parts = [&](const Source& s, const Placements& p) {
    bool parts = false;
    for (size_t a = 0; a < p.size(); ++a) {
      const MeshAxis& axis = plan.mesh.axes[a];
      parts |= axis.size > 1 && p[a].is_shard() && keeps(s, axis);
    }
    return parts;
  };
  const auto copies = copies_made_once(graph);
  double parameters = 0, states = 0;
  KeptInParts split;
  for (const Source& s : graph.sources()) {
    const bool kept = s.kind == SourceKind::kParameter || s.kind == SourceKind::kState;
    if (!kept || !counted(s)) continue;
    const TensorType& type = graph.type(s.value);
    const auto bytes = static_cast<double>(numel(type.shape) * size_of(type.dtype));
    bool parts = in_parts(s, plan.values[static_cast<size_t>(s.value)][0].placements);
    for (Value copy : copies[static_cast<size_t>(graph.value(s.value).source)]) {
      const auto held = plan.held.find(copy);
      parts = parts && (held == plan.held.end() || in_parts(s, held->second));
    }
    const bool parameter = s.kind == SourceKind::kParameter;
    (parameter ? parameters : states) += bytes;
    if (parts) (parameter ? split.parameters : split.states) += bytes;
  }
  if (parameters > 0) split.parameters /= parameters;
  if (states > 0) split.states /= states;
  return split;
}

}  // namespace cleave
