#include "cli/plan_parts.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "cli/format.h"
#include "graph/error.h"
#include "planner/explain.h"
#include "planner/roles.h"
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

// "0-7, 12"; of many that are equally long and far apart, "0, 4, … 28".
std::string ranges(const std::vector<int32_t>& ascending) {
  constexpr size_t kFew = 4;
  std::vector<std::string> parts;
  std::vector<std::pair<int32_t, int32_t>> runs;  // first, last
  for (size_t i = 0; i < ascending.size();) {
    size_t j = i;
    while (j + 1 < ascending.size() && ascending[j + 1] == ascending[j] + 1) ++j;
    runs.emplace_back(ascending[i], ascending[j]);
    parts.push_back(i == j ? std::to_string(ascending[i])
                           : fmt::format("{}-{}", ascending[i], ascending[j]));
    i = j + 1;
  }
  bool regular = runs.size() > kFew;
  for (size_t r = 1; r < runs.size(); ++r) {
    regular &= runs[r].first - runs[r - 1].first == runs[1].first - runs[0].first &&
               runs[r].second - runs[r].first == runs[0].second - runs[0].first;
  }
  if (regular) return fmt::format("{}, {}, … {}", parts[0], parts[1], parts.back());
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

LayerName layer_name(const std::string& scope) {
  LayerName name;
  for (size_t begin = 0; begin < scope.size();) {
    const size_t dot = std::min(scope.find('.', begin), scope.size());
    const std::string part = scope.substr(begin, dot - begin);
    const bool digits = !part.empty() && part.size() < 9 &&
                        part.find_first_not_of("0123456789") == std::string::npos;
    if (digits && name.number < 0) {
      name.number = std::stoi(part);
    } else if (name.number < 0) {
      name.layers += (name.layers.empty() ? "" : ".") + part;
    } else {
      name.inside = part;
      break;
    }
    begin = dot + 1;
  }
  if (name.number < 0) name.inside = name.layers.substr(0, name.layers.find('.'));
  return name;
}

StageTime busiest_stage(const Graph& graph, const Plan& plan) {
  const auto stages = static_cast<size_t>(std::max(plan.pipeline.stages, 1));
  std::vector<std::array<double, 2>> busy(stages, {0, 0});
  for (size_t g = 0; g < plan.loads.size(); ++g) {
    for (size_t p = 0; p < 3; ++p) {
      const GroupLoad& l = plan.loads[g];
      busy[g % stages][0] += times(graph, p) * (l.seconds[p] - l.communication[p]);
      busy[g % stages][1] += times(graph, p) * l.communication[p];
    }
    busy[g % stages][1] += plan.loads[g].starts;
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
  double collectives = 0;
  for (const PlannedCollectives& c : plan.collectives) {
    if (c.stage != t.stage) continue;
    StageTime::Sent& sent = t.axes[plan.mesh.axes[at(c.axis)].name];
    sent.seconds += c.seconds, sent.bytes += c.bytes;
    collectives += c.seconds;
  }
  for (size_t g = at(t.stage); g < plan.loads.size(); g += stages) t.host += plan.loads[g].host;
  t.cutting = std::max(0.0, t.communication - collectives - t.host);
  if (t.cutting < 1e-12 * t.communication) t.cutting = 0;
  return t;
}

std::string mesh_words(const Mesh& mesh, int32_t stages) {
  std::vector<std::string> axes, unnamed;
  if (stages > 1) axes.push_back(fmt::format("pp {}", stages));
  for (const MeshAxis& a : mesh.axes) {
    if (a.size == 1) continue;
    // Axes without a plan have no role: "a0".
    const bool named =
        !(a.name.size() > 1 && a.name[0] == 'a' && a.name[1] >= '0' && a.name[1] <= '9');
    if (named) axes.push_back(fmt::format("{} {}", a.name, a.size));
    if (!named) unnamed.push_back(std::to_string(a.size));
  }
  if (!unnamed.empty()) axes.push_back(fmt::format("{} devices", fmt::join(unnamed, "x")));
  return axes.empty() ? "1 device" : fmt::format("{}", fmt::join(axes, " × "));
}

std::string zero_words(const Graph& graph, const Plan& plan) {
  if (plan.zero == 0) return "";
  const KeptInParts parts = kept_in_parts(graph, plan);
  const double share = plan.zero == 3 ? parts.parameters : parts.states;
  std::string text = fmt::format("ZeRO {}", plan.zero);
  // What cannot be split at all is little.
  if (share < 0.995) {
    text += fmt::format(" for {:.0f} % of the {}", 100 * share,
                        plan.zero == 3 ? "weights" : "optimizer states");
  }
  return text;
}

std::string words_of(const Candidate& c) {
  std::string text = mesh_words(c.mesh, c.stages);
  if (c.chunks > 1) text += fmt::format(" × {} chunks", c.chunks);
  if (c.stages > 1 && c.schedule == ScheduleKind::kZeroBubble) text += " zero-bubble";
  if (c.micro_batches > 1) text += fmt::format(", {} micro-batches", c.micro_batches);
  return text;
}

std::vector<const Candidate*> beaten(const Plan& plan) {
  std::vector<const Candidate*> order;
  for (const Candidate& c : plan.candidates) {
    if (!c.why_not.empty()) order.push_back(&c);
  }
  const auto rank = [](const Candidate* c) {
    return std::tuple(!std::isfinite(c->cost), !c->planned, c->cost);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](const Candidate* a, const Candidate* b) { return rank(a) < rank(b); });
  return order;
}

std::string why_not(const Candidate& c, const Plan& chosen) {
  if (!std::isfinite(c.cost)) return c.why_not;
  const double slower = std::max(0.0, 100 * (c.cost / chosen.certificate.cost - 1));
  if (!c.planned) {
    if (slower < 0.05) return "promising by an estimate, not planned in full";
    return fmt::format("estimated, not planned: at best {:.1f} % slower", slower);
  }
  std::string text = fmt::format("{:.1f} % slower", slower);
  // A pipeline's seconds are those of all its stages.
  if (c.compute_seconds > 0 && c.stages == 1) {
    text += fmt::format(": {} computing", seconds_text(c.compute_seconds));
    if (c.communication_seconds > 0) {
      text += fmt::format(", {} communicating", seconds_text(c.communication_seconds));
    }
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
  result.stage = busiest_stage(graph, plan).stage;
  std::vector<bool> remade(graph.nodes().size(), false);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (repeats_of[n] == kNoNode) continue;
    remade[at(repeats_of[n])] = true;
    if (plan.pipeline.stages == 1 ||
        plan.pipeline.stage_of(static_cast<NodeId>(n)) == result.stage) {
      result.seconds += plan.nodes[n].seconds * static_cast<double>(graph.micro_batches);
    }
  }
  // The work of every part of every layer, and how much of it is done again.
  struct Work {
    double all = 0, again = 0;
    void add(double flops, bool twice) { all += flops, again += twice ? flops : 0; }
    bool whole() const { return again >= 0.9 * all; }
  };
  std::map<std::string, std::map<std::string, Work>> by_layer;  // by layer, part
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) continue;
    const LayerName name = layer_name(graph.scopes()[at(node.scope)]);
    const std::string layer = name.number < 0 ? "" : fmt::format("{}.{}", name.layers, name.number);
    const std::string part = name.inside.empty() ? std::string(node.op->name) : name.inside;
    by_layer[layer][part].add(flops_of(graph, node), remade[n]);
  }
  std::map<std::string, int64_t> said;  // layers with the same said of them
  int64_t layers = 0;
  for (const auto& [layer, parts] : by_layer) {
    Work all;
    std::vector<std::string> whole, some;
    for (const auto& [part, work] : parts) {
      all.all += work.all, all.again += work.again;
      if (work.again > 0) (work.whole() ? whole : some).push_back(part);
    }
    layers += !layer.empty();
    if (all.again == 0) continue;
    std::string what = "whole";
    if (!all.whole() || layer.empty()) {
      for (const std::string& part : some) whole.push_back("a part of " + part);
      what = fmt::format("{}", fmt::join(whole, ", "));
    }
    ++said[layer.empty() ? " " + what : what];
  }
  std::vector<std::string> words;
  for (const auto& [what, count] : said) {
    const bool every = count == layers;
    if (what[0] == ' ') {
      words.push_back(fmt::format("{} outside of the layers", what.substr(1)));
    } else if (what == "whole") {
      words.insert(words.begin(), every ? std::string("every layer whole")
                                        : fmt::format("{} of {} layers whole", count, layers));
    } else {
      words.push_back(every ? fmt::format("{} of every layer", what)
                            : fmt::format("{} of {} layers", what, count));
    }
  }
  result.words = fmt::format("{}", fmt::join(words, "; "));
  return result;
}

std::vector<StageRow> stage_rows(const Graph& graph, const Plan& plan) {
  const Pipeline& p = plan.pipeline;
  std::vector<StageRow> rows(at(p.stages));
  double total = 0;
  for (const Node& node : graph.nodes()) {
    if (node.phase == Phase::kForward) total += flops_of(graph, node);
  }
  for (int32_t s = 0; s < p.stages; ++s) {
    StageRow& row = rows[at(s)];
    row.first = row.last = s;
    std::map<std::string, std::set<int32_t>> numbers;  // by what the layers are called
    std::vector<std::string> others;
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      const Node& node = graph.nodes()[n];
      if (node.phase != Phase::kForward || p.stage_of(static_cast<NodeId>(n)) != s) continue;
      if (node.op->transfer) continue;
      const LayerName name = layer_name(graph.scopes()[at(node.scope)]);
      if (name.number >= 0) {
        numbers[name.layers].insert(name.number);
        continue;
      }
      // Where it is in the model, or, outside of any module, what does much of the work.
      const double flops = flops_of(graph, node);
      if (name.inside.empty() && flops < 0.005 * total) continue;
      const std::string what = name.inside.empty() ? std::string(node.op->name) : name.inside;
      if (std::find(others.begin(), others.end(), what) == others.end()) others.push_back(what);
    }
    std::vector<std::string> parts;
    for (const auto& [layers, of] : numbers) {
      parts.push_back(fmt::format("{} {}", layers, ranges({of.begin(), of.end()})));
    }
    parts.insert(parts.end(), others.begin(), others.end());
    row.holds = fmt::format("{}", fmt::join(parts, ", "));
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
