#include "viz/captions.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "graph/number_text.h"
#include "planner/of_weights.h"
#include "viz/names.h"

namespace cleave {
namespace {

constexpr size_t kMostParameters = 3, kMostOfAPart = 2;
constexpr size_t kOpsWidth = 40;

size_t at(int32_t i) { return static_cast<size_t>(i); }

double bytes_of(const Shape& shape, DType dtype) {
  return static_cast<double>(numel(shape) * size_of(dtype));
}

}  // namespace

Captions::Captions(const Graph& graph, const Plan* plan, const Annotations& notes,
                   const Units& units, ViewLevel level)
    : graph_(graph),
      plan_(plan),
      notes_(notes),
      units_(units),
      level_(level),
      readers_(graph.values().size()),
      of_weights_(values_of_weights(graph)) {
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    for (Value v : graph.nodes()[n].inputs) readers_[at(v)].push_back(static_cast<NodeId>(n));
  }
  for (const GraphUnit& u : units.units) total_ += u.flops;
}

std::string Captions::shape_text(Value v) const {
  const Shape& whole = graph_.type(v).shape;
  std::string text = to_string(whole);
  if (plan_ == nullptr || plan_->values[at(v)].empty()) return text;
  const Shape local = plan_->layout(v, 0).local_shape(plan_->mesh);
  return local == whole ? text : text + " → " + to_string(local);
}

ValueLine Captions::line(const std::string& name, Value v) const {
  const auto& fills = notes_.fills_of_value[at(v)];
  return {name + " " + shape_text(v),
          fills.empty() ? std::vector<std::string>{colours::kPlain} : fills};
}

// The different parameters that a unit reads, the largest first.
std::vector<Value> Captions::parameters_of(const GraphUnit& u) const {
  std::vector<Value> values;
  for (NodeId n : u.nodes) {
    for (Value v : graph_.node(n).inputs) {
      const Source* s = graph_.source_of(v);
      const bool seen = std::find(values.begin(), values.end(), v) != values.end();
      if (s != nullptr && s->kind == SourceKind::kParameter && !seen) values.push_back(v);
    }
  }
  std::stable_sort(values.begin(), values.end(), [&](Value a, Value b) {
    return numel(graph_.type(a).shape) > numel(graph_.type(b).shape);
  });
  return values;
}

// Without what the box's title says already.
std::string Captions::parameter_name(const GraphUnit& u, Value v) const {
  const std::string& name = graph_.source_of(v)->name;
  const size_t inside = name.find("." + u.name + ".");
  if (!u.name.empty() && inside != std::string::npos)
    return name.substr(inside + u.name.size() + 2);
  if (!u.name.empty() && name.starts_with(u.name + ".")) return name.substr(u.name.size() + 1);
  return level_ == ViewLevel::kModel ? folded_name(name) : std::string(last_part(name));
}

// The different ops of a unit that do work, in order, as many as fit.
std::string Captions::ops_of(const GraphUnit& u) const {
  std::string text;
  std::set<std::string_view> seen;
  for (NodeId n : u.nodes) {
    const OpDef& op = *graph_.node(n).op;
    if (op.view != nullptr || op.name == "cast" || !seen.insert(op.name).second) continue;
    if (text.size() + op.name.size() > kOpsWidth) return text + ", …";
    text += fmt::format("{}{}", text.empty() ? "" : ", ", op.name);
  }
  return text.empty() ? std::string(graph_.node(u.nodes[0]).op->name) : text;
}

// What is read outside of the unit by this phase, or is an output of the graph.
std::vector<Value> Captions::results_of(int32_t unit, const std::vector<NodeId>& main,
                                        Phase reader) const {
  std::vector<Value> results;
  const std::set<NodeId> inside(main.begin(), main.end());
  for (NodeId n : main) {
    for (Value v : graph_.node(n).outputs) {
      const bool weights = of_weights(v);
      if (weights != (reader == Phase::kUpdate)) continue;
      const auto outside = [&](NodeId r) {
        return graph_.node(r).phase == reader &&
               (units_.of_node[at(r)] != unit || !inside.contains(r));
      };
      if (std::any_of(readers_[at(v)].begin(), readers_[at(v)].end(), outside))
        results.push_back(v);
    }
  }
  return results;
}

// One line for each shape.
void Captions::add_results(Box& box, const std::string& name,
                           const std::vector<Value>& values) const {
  std::vector<ValueLine> lines;
  std::vector<int> counts;
  for (Value v : values) {
    if (graph_.type(v).shape.empty() && level_ != ViewLevel::kRaw) continue;
    const ValueLine l = line(name, v);
    const auto same = std::find_if(lines.begin(), lines.end(),
                                   [&](const ValueLine& o) { return o.text == l.text; });
    if (same != lines.end()) {
      ++counts[static_cast<size_t>(same - lines.begin())];
    } else {
      lines.push_back(l);
      counts.push_back(1);
    }
  }
  for (size_t i = 0; i < lines.size(); ++i) {
    if (counts[i] > 1) lines[i].text += fmt::format(" × {}", counts[i]);
    box.values.push_back(lines[i]);
  }
}

// The user's name for it; else that of the output that it makes; else its ops.
std::string Captions::title_of(const GraphUnit& u, const std::string& ops) const {
  if (level_ != ViewLevel::kModel) {
    const std::string& scope = graph_.scopes()[at(graph_.node(u.nodes[0]).scope)];
    const std::string part(last_part(scope));
    const bool number = part.find_first_not_of("0123456789") == std::string::npos;
    return number ? u.name : fmt::format("{} · {}", part, u.name);
  }
  const std::string name = unit_name(graph_, units_, u);
  return name.empty() ? ops : name;
}

// Those with a matrix's shape say how a part is cut; equal ones share a line.
void Captions::add_parameters(Box& box, const GraphUnit& u) const {
  const std::vector<Value> all = parameters_of(u);
  const bool part = level_ == ViewLevel::kModel;
  const bool matrices =
      std::any_of(all.begin(), all.end(), [&](Value v) { return graph_.type(v).shape.size() > 1; });
  std::vector<std::pair<std::string, Value>> lines;
  for (Value v : all) {
    if (part && matrices && graph_.type(v).shape.size() < 2) continue;
    if (!lines.empty() && line("", lines.back().second).text == line("", v).text) {
      lines.back().first += ", " + parameter_name(u, v);
    } else if (lines.size() < (part ? kMostOfAPart : kMostParameters)) {
      lines.emplace_back(parameter_name(u, v), v);
    }
  }
  for (const auto& [name, v] : lines) box.values.push_back(line(name, v));
}

Box Captions::box_of(int32_t unit, const std::vector<NodeId>& main) const {
  const GraphUnit& u = units_.units[at(unit)];
  const GraphUnit& named = u.forward >= 0 ? units_.units[at(u.forward)] : u;
  const std::string ops = ops_of(u);
  Box box;
  box.title = title_of(u, ops);
  if (level_ == ViewLevel::kModel) {
    const double share = total_ > 0 ? u.flops / total_ : 0;
    std::string note = ops == box.title ? "" : ops;
    if (share >= 0.005)
      note += fmt::format("{}{:.0f} % of the work", note.empty() ? "" : " · ", 100 * share);
    if (!note.empty()) box.notes.push_back(note);
  }
  if (level_ == ViewLevel::kRaw) {
    for (size_t i = 0; i < graph_.node(main[0]).outputs.size(); ++i) {
      box.values.push_back(line("%" + std::to_string(graph_.node(main[0]).outputs[i]),
                                graph_.node(main[0]).outputs[i]));
    }
    return box;
  }
  const std::vector<Value> parameters = parameters_of(u.forward >= 0 ? named : u);
  if (u.phase == Phase::kForward) {
    add_parameters(box, u);
    std::vector<Value> results = results_of(unit, main, Phase::kForward);
    if (level_ == ViewLevel::kModel && results.size() > 1) results = {results.back()};
    if (results.empty() && main.empty()) return box;
    add_results(box, "out", results);
    return compact(std::move(box));
  }
  std::vector<Value> results = results_of(unit, main, Phase::kBackward);
  if (level_ == ViewLevel::kModel && results.size() > 1) results = {results.back()};
  add_results(box, "grad", results);
  // Gradients of parameters have their shapes.
  size_t shown = 0;
  std::vector<Value> gradients = results_of(unit, u.nodes, Phase::kUpdate);
  std::stable_sort(gradients.begin(), gradients.end(), [&](Value a, Value b) {
    return numel(graph_.type(a).shape) > numel(graph_.type(b).shape);
  });
  std::vector<Value> left = parameters;
  for (Value g : gradients) {
    const auto of = std::find_if(left.begin(), left.end(), [&](Value p) {
      return graph_.type(p).shape == graph_.type(g).shape;
    });
    if (of == left.end()) continue;
    const std::string name = parameter_name(named, *of);
    // With vectors only, or of a matrix that has been shown.
    const bool vectors = graph_.type(gradients[0]).shape.size() < 2;
    const size_t most = level_ == ViewLevel::kModel ? kMostOfAPart : kMostParameters;
    const ValueLine l = line("grad " + name, g);
    if (shown > 0 && vectors && line("", g).text == line("", gradients[0]).text) {
      std::string& text = box.values.back().text;
      text.insert(text.find(" ["), ", " + name);
    } else if (shown < most &&
               (vectors || graph_.type(g).shape.size() > 1 || level_ != ViewLevel::kModel)) {
      box.values.push_back(l);
      ++shown;
    }
    left.erase(of);
  }
  return compact(std::move(box));
}

// What is not named and makes one value, such as a sum, needs no more than a line.
Box Captions::compact(Box box) const {
  const bool named = !box.notes.empty() || level_ != ViewLevel::kModel;
  if (named || box.values.size() != 1 || box.title.size() > 12) return box;
  std::string& text = box.values[0].text;
  if (!text.starts_with("out [") && !text.starts_with("grad [")) return box;
  text = box.title + text.substr(text.find(' '));
  box.title.clear();
  return box;
}

Box Captions::update_box(const GraphUnit& u) const {
  Box box;
  box.title = "optimizer";
  const auto work = std::count_if(u.nodes.begin(), u.nodes.end(),
                                  [&](NodeId n) { return graph_.node(n).op->view == nullptr; });
  box.notes = {fmt::format("{} ops", work)};
  for (SourceKind kind : {SourceKind::kParameter, SourceKind::kState}) {
    double whole = 0, local = 0;
    std::map<std::vector<std::string>, double> weights;
    for (const Source& s : graph_.sources()) {
      if (s.kind != kind) continue;
      const TensorType& type = graph_.type(s.value);
      const bool planned = plan_ != nullptr && !plan_->values[at(s.value)].empty();
      whole += bytes_of(type.shape, type.dtype);
      local += bytes_of(planned ? plan_->layout(s.value, 0).local_shape(plan_->mesh) : type.shape,
                        type.dtype);
      weights[notes_.fills_of_value[at(s.value)]] += bytes_of(type.shape, type.dtype);
    }
    if (whole <= 0) continue;
    auto fills = std::max_element(weights.begin(), weights.end(), [](const auto& a, const auto& b) {
                   return a.second < b.second;
                 })->first;
    if (fills.empty()) fills = {colours::kPlain};
    const char* name = kind == SourceKind::kParameter ? "parameters" : "optimizer states";
    box.values.push_back({fmt::format("{} {}{}", name, bytes_text(whole),
                                      local < whole ? " → " + bytes_text(local) : ""),
                          fills});
  }
  return box;
}

}  // namespace cleave
