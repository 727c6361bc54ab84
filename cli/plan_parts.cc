#include "cli/plan_parts.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "cli/format.h"
#include "graph/error.h"
#include "graph/repeats.h"
#include "planner/explain.h"
#include "viz/names.h"

namespace cleave {
namespace {

size_t at(int32_t i) { return static_cast<size_t>(i); }

double times(const Graph& graph, size_t phase) {
  return phase == static_cast<size_t>(Phase::kUpdate) ? 1
                                                      : static_cast<double>(graph.micro_batches);
}

double flops_of(const Graph& graph, const Node& node) {
  return node.op->flops(Graph::call(node, graph.input_types(node)));
}

// "0-7, 12"
std::string ranges(const std::vector<int32_t>& ascending) {
  std::vector<std::string> parts;
  for (size_t i = 0; i < ascending.size();) {
    size_t j = i;
    while (j + 1 < ascending.size() && ascending[j + 1] == ascending[j] + 1) ++j;
    parts.push_back(i == j ? std::to_string(ascending[i])
                           : fmt::format("{}-{}", ascending[i], ascending[j]));
    i = j + 1;
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

StageTime busiest_stage(const Graph& graph, const Plan& plan) {
  const auto stages = static_cast<size_t>(std::max(plan.pipeline.stages, 1));
  std::vector<std::array<double, 2>> busy(stages, {0, 0});
  for (size_t g = 0; g < plan.loads.size(); ++g) {
    for (size_t p = 0; p < 3; ++p) {
      const GroupLoad& l = plan.loads[g];
      busy[g % stages][0] += times(graph, p) * (l.seconds[p] - l.communication[p]);
      busy[g % stages][1] += times(graph, p) * l.communication[p];
    }
  }
  StageTime t;
  for (size_t s = 0; s < stages; ++s) {
    if (s > 0 && busy[s][0] + busy[s][1] <= t.compute + t.communication) continue;
    t.stage = static_cast<int32_t>(s);
    t.compute = busy[s][0], t.communication = busy[s][1];
  }
  if (stages == 1) {
    t.compute = plan.predicted.compute_seconds,
    t.communication = plan.predicted.communication_seconds;
  }
  t.waiting =
      stages == 1 ? 0 : std::max(0.0, plan.predicted.step_seconds - t.compute - t.communication);
  return t;
}

std::string mesh_words(const Mesh& mesh, int32_t stages) {
  std::vector<std::string> axes;
  if (stages > 1) axes.push_back(fmt::format("pp {}", stages));
  for (const MeshAxis& a : mesh.axes) {
    // Axes without a plan have no role: "a0".
    const bool named = !(a.name.size() > 1 && a.name[0] == 'a' && std::isdigit(a.name[1]) != 0);
    if (a.size > 1)
      axes.push_back(named ? fmt::format("{} {}", a.name, a.size) : fmt::format("{}", a.size));
  }
  return axes.empty() ? "1 device" : fmt::format("{}", fmt::join(axes, " × "));
}

std::string words_of(const Candidate& c) {
  std::string text = mesh_words(c.mesh, c.stages);
  if (c.chunks > 1) text += fmt::format(" × {} chunks", c.chunks);
  if (c.stages > 1 && c.schedule == ScheduleKind::kZeroBubble) text += " zero-bubble";
  if (c.micro_batches > 1) text += fmt::format(", {} micro-batches", c.micro_batches);
  return text;
}

std::string why_not(const Candidate& c, const Plan& chosen) {
  if (!std::isfinite(c.cost)) return c.why_not;
  const double slower = 100 * (c.cost / chosen.certificate.cost - 1);
  std::string text = fmt::format("{:.1f} % slower", slower);
  // A pipeline's seconds are those of all its stages.
  if (c.compute_seconds > 0 && c.stages == 1) {
    text += fmt::format(": {} computing, {} communicating", seconds_text(c.compute_seconds),
                        seconds_text(c.communication_seconds));
  }
  return text;
}

std::vector<NodeId> repeated_nodes(const Graph& graph, const Plan& plan) {
  std::vector<NodeId> repeats_of(graph.nodes().size(), kNoNode);
  if (plan.rewrite.remade.empty()) return repeats_of;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& n = graph.nodes()[i];
    if (n.phase != Phase::kBackward || n.follows == kNoNode) continue;
    const NodeId forward = leader_of(graph, static_cast<NodeId>(i));
    const Node& f = graph.node(forward);
    if (f.phase != Phase::kForward || f.op != n.op || f.signature != n.signature ||
        f.inputs.size() != n.inputs.size()) {
      continue;
    }
    // It reads what the other did, or that computed again.
    bool same = true;
    for (size_t k = 0; k < n.inputs.size() && same; ++k) {
      const NodeId maker = graph.value(n.inputs[k]).producer;
      const NodeId other = graph.value(f.inputs[k]).producer;
      same = n.inputs[k] == f.inputs[k] ||
             (maker != kNoNode && other != kNoNode && repeats_of[at(maker)] == other);
    }
    if (same) repeats_of[i] = forward;
  }
  return repeats_of;
}

Recomputed recomputed(const Graph& graph, const Plan& plan) {
  Recomputed result;
  const std::vector<NodeId> repeats_of = repeated_nodes(graph, plan);
  const Layers layers = layers_of(graph, repeats(graph));
  struct OfLayer {
    double flops = 0, again = 0;
    std::set<std::string> ops;
  };
  std::map<std::pair<int32_t, int32_t>, OfLayer> by_layer;
  std::vector<bool> remade(graph.nodes().size(), false);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (repeats_of[n] == kNoNode) continue;
    remade[at(repeats_of[n])] = true;
    result.seconds += plan.nodes[n].seconds * static_cast<double>(graph.micro_batches);
  }
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) continue;
    const Layer& l = layers.nodes[n];
    OfLayer& of = by_layer[{l.copy < 0 ? -1 : l.repeat, l.copy}];
    const double flops = flops_of(graph, node);
    of.flops += flops;
    if (!remade[n]) continue;
    of.again += flops;
    // Casts and views are on the way.
    if (flops > 0 && node.inputs.size() > 0) of.ops.insert(std::string(node.op->name));
  }
  // Layers with the same said of them together.
  std::map<std::string, int64_t> said;
  int64_t copies = 0;
  for (const auto& [layer, of] : by_layer) {
    copies += layer.second >= 0;
    if (of.again == 0) continue;
    std::string what;
    if (of.again >= 0.9 * of.flops) {
      what = "whole";
    } else {
      std::vector<std::string> ops(of.ops.begin(), of.ops.end());
      if (ops.size() > 4) ops.resize(4), ops.push_back("...");
      what = fmt::format("{}", fmt::join(ops, ", "));
    }
    ++said[layer.second >= 0 ? what : " " + what];
  }
  std::vector<std::string> parts;
  for (const auto& [what, count] : said) {
    if (what[0] == ' ') {
      parts.push_back(what.substr(1) + " outside of the layers");
    } else if (what == "whole") {
      parts.insert(parts.begin(), count == copies
                                      ? "every layer whole"
                                      : fmt::format("{} of {} layers whole", count, copies));
    } else {
      parts.push_back(count == copies ? what + " of every layer"
                                      : fmt::format("{} of {} layers", what, count));
    }
  }
  result.words = fmt::format("{}", fmt::join(parts, "; "));
  return result;
}

std::vector<StageRow> stage_rows(const Graph& graph, const Plan& plan) {
  const Pipeline& p = plan.pipeline;
  std::vector<StageRow> rows(at(p.stages));
  const Layers layers = layers_of(graph, repeats(graph));
  for (int32_t s = 0; s < p.stages; ++s) {
    StageRow& row = rows[at(s)];
    row.first = row.last = s;
    std::set<int32_t> copies;
    std::vector<std::string> others;
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      const Node& node = graph.nodes()[n];
      if (node.phase != Phase::kForward || p.stage_of(static_cast<NodeId>(n)) != s) continue;
      if (node.op->transfer) continue;
      if (layers.nodes[n].copy >= 0) {
        copies.insert(layers.nodes[n].copy);
        continue;
      }
      // Where it is in the model, or, outside of any module, what it does.
      const std::string& scope = graph.scopes()[at(node.scope)];
      const double flops = flops_of(graph, node);
      if (flops <= 0) continue;
      const std::string name =
          scope.empty() ? std::string(node.op->name) : scope.substr(0, scope.find('.'));
      const bool cast = node.inputs.size() == 1 && scope.empty();
      if (!cast && std::find(others.begin(), others.end(), name) == others.end())
        others.push_back(name);
    }
    if (!copies.empty()) {
      row.holds =
          fmt::format("{} layers ({})", copies.size(), ranges({copies.begin(), copies.end()}));
    }
    if (!others.empty()) {
      if (others.size() > 4) others.resize(4), others.push_back("...");
      row.holds += fmt::format("{}{}", row.holds.empty() ? "" : ", ", fmt::join(others, ", "));
    }
    for (size_t g = at(s); g < plan.loads.size(); g += at(p.stages)) {
      const GroupLoad& l = plan.loads[g];
      row.forward += l.seconds[0];
      row.backward += l.seconds[1];
      row.state_bytes += l.state_bytes;
      const double flying = g < plan.costing.in_flight.size() ? plan.costing.in_flight[g] : 1;
      row.in_flight = std::max(row.in_flight, flying);
      row.kept_bytes += static_cast<int64_t>(flying * static_cast<double>(l.kept_bytes));
    }
  }
  return rows;
}

}  // namespace cleave
