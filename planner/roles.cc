#include "planner/roles.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

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
  std::vector<size_t> data_axes;
  for (size_t a = 0; a < plan.mesh.axes.size(); ++a) {
    std::string name = role_of_axis(graph, plan, a);
    if (plan.roles[a] != AxisRole::kAny) name = name_of(plan.roles[a]);
    if (name == "dp" || name == "ep") data_axes.push_back(a);
    const int before = seen[name]++;
    plan.mesh.axes[a].name = before == 0 ? name : fmt::format("{}{}", name, before + 1);
  }
  // A stage is reached when more than half of the bytes are split over a batch axis.
  double parameters = 0, states = 0, split_parameters = 0, split_states = 0;
  for (const Source& s : graph.sources()) {
    if (s.kind != SourceKind::kParameter && s.kind != SourceKind::kState) continue;
    const double bytes =
        static_cast<double>(numel(graph.type(s.value).shape) * size_of(graph.type(s.value).dtype));
    const Placements& p = plan.values[static_cast<size_t>(s.value)][0].placements;
    const bool split = std::any_of(data_axes.begin(), data_axes.end(), [&](size_t a) {
      return p[a].is_shard() && plan.mesh.axes[a].size > 1;
    });
    (s.kind == SourceKind::kParameter ? parameters : states) += bytes;
    if (split) (s.kind == SourceKind::kParameter ? split_parameters : split_states) += bytes;
  }
  plan.zero = split_parameters * 2 > parameters ? 3 : split_states * 2 > states ? 1 : 0;
}

}  // namespace cleave
