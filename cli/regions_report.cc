#include "cli/regions_report.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "cli/format.h"
#include "graph/error.h"
#include "planner/regions.h"
#include "viz/class_words.h"
#include "viz/names.h"
#include "viz/weights.h"

namespace cleave {
namespace {

constexpr double kSmallestShare = 0.005;  // of flops; smaller regions are only counted
constexpr size_t kMostRows = 14;

// The ends of a region in one phase: what they are, and the largest of them.
struct Ends {
  int64_t count = 0;
  double bytes = 0;
  SyncPoint largest;
  int64_t equal = 0;  // like the largest: op, kind, bytes
};

Ends ends_in(const Graph& graph, const std::vector<SyncPoint>& syncs, Phase phase) {
  Ends e;
  const auto key = [&](const SyncPoint& s) {
    return std::tuple(s.bytes, s.kind, graph.node(s.node).op);
  };
  for (const SyncPoint& s : syncs) {
    if (s.phase != phase) continue;
    e.bytes += s.bytes;
    if (e.count++ == 0 || s.bytes > e.largest.bytes) e.largest = s, e.equal = 0;
    e.equal += key(s) == key(e.largest);
  }
  return e;
}

// What has to happen there, as one says it: "sum after matmul".
std::string deed(const Graph& graph, const SyncPoint& s) {
  std::string_view op = graph.node(s.node).op->name;
  if (op.ends_with("_backward")) op.remove_suffix(9);  // the phase says so
  switch (s.kind) {
    case SyncKind::kReduction: return fmt::format("{} after {}", name_of(s.reduction), op);
    case SyncKind::kWhole: return fmt::format("whole for {}", op);
    case SyncKind::kConflict: return fmt::format("twice in {}", op);
  }
  return "";
}

std::string text_of(const Graph& graph, const Ends& e) {
  if (e.count == e.equal) {
    const std::string times = e.equal > 1 ? fmt::format(" ×{}", e.equal) : "";
    return fmt::format("{}{} {}", bytes_text(e.largest.bytes), times, deed(graph, e.largest));
  }
  return fmt::format("{} in {} places", bytes_text(e.bytes), e.count);
}

// "gpt2.cc:29 mlp.proj".
std::string place_of(const Graph& graph, const Ends& e) {
  const Node& node = graph.node(e.largest.node);
  return fmt::format(
      "{} {}", graph.place(node.loc),
      cut(inside_layer(folded_name(graph.scopes()[static_cast<size_t>(node.scope)])), kWidest));
}

// The parts of the model that a region goes through, those with the most work first.
std::string where(const Graph& graph, const std::vector<std::string>& parts, const Region& r,
                  int64_t count) {
  std::map<std::string, double> work;
  double total = 0;
  for (NodeId n : r.nodes) {
    const Node& node = graph.node(n);
    const double flops = node.op->flops(Graph::call(node, graph.input_types(node)));
    work[parts[static_cast<size_t>(n)]] += flops;
    total += flops;
  }
  std::vector<std::pair<double, std::string>> order;
  for (const auto& [part, flops] : work) {
    if (!part.empty() && flops >= 0.05 * total) order.emplace_back(-flops, part);
  }
  std::sort(order.begin(), order.end());
  if (order.size() > 2 && count == 1) return "whole model";
  std::vector<std::string> names;
  for (const auto& [flops, part] : order) names.push_back(part);
  return cut(fmt::format("{}", fmt::join(names, ", ")), kWidest) +
         (count > 1 ? fmt::format(" ×{}", count) : "");
}

// The innermost part of a layer that does most of a region's work: "attn.q".
std::string heaviest_scope(const Graph& graph, const Region& r) {
  std::map<std::string, double> work;
  for (NodeId n : r.nodes) {
    const Node& node = graph.node(n);
    work[inside_layer(folded_name(graph.scopes()[static_cast<size_t>(node.scope)]))] +=
        node.op->flops(Graph::call(node, graph.input_types(node)));
  }
  return std::max_element(work.begin(), work.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

}  // namespace

std::string regions_report(const Graph& graph, bool colour) {
  const Dimensions dims = find_dimensions(graph);
  const std::vector<std::string> words = class_words(graph, dims);
  const std::vector<std::string> parts = part_names(graph);
  Table table(
      {"split", ">size", "in", ">work", "ends where devices must meet, bytes", "the largest at"});
  int64_t left_out = 0;
  std::vector<RegionGroup> shown;
  for (RegionGroup& g : fold_regions(graph, find_regions(graph, dims))) {
    if (g.first.flops_share < kSmallestShare || shown.size() == kMostRows) {
      left_out += g.count;
    } else {
      shown.push_back(std::move(g));
    }
  }
  std::map<std::pair<std::string, std::string>, int> rows;  // by name and part of the model
  const auto key = [&](const RegionGroup& g) {
    return std::pair(words[static_cast<size_t>(g.first.dimension_class)],
                     where(graph, parts, g.first, g.count));
  };
  for (const RegionGroup& g : shown) ++rows[key(g)];
  for (const RegionGroup& g : shown) {
    const Region& r = g.first;
    auto [name, in] = key(g);
    // Regions of one class in one part of the model: by what does their work.
    if (rows[{name, in}] > 1) {
      name = fmt::format("{} ({})", name.substr(0, name.find(" (")), heaviest_scope(graph, r));
    }
    std::vector<std::string> row = {
        cut(name, kWidest),
        with_commas(static_cast<double>(dims.classes[static_cast<size_t>(r.dimension_class)].size)),
        in, fmt::format("{:.0f} %", 100 * r.flops_share)};
    bool ends = false;
    for (Phase phase : {Phase::kForward, Phase::kBackward}) {
      const Ends e = ends_in(graph, r.syncs, phase);
      if (e.count == 0) continue;
      row.push_back(fmt::format("{:<9}{}", name_of(phase), cut(text_of(graph, e), kWidest)));
      row.push_back(place_of(graph, e));
      table.add(std::move(row));
      row = {"", "", "", ""};
      ends = true;
    }
    if (!ends) table.add(std::move(row));
  }
  std::string text =
      "Split one of these dimensions over devices, and each computes its part of a region alone, "
      "until\n"
      "the region ends. Regions of equal layers are one row: ends and bytes are those of one of "
      "them,\n"
      "work is all of theirs. Devices meet to sum what an op left in parts, to have whole what an "
      "op\n"
      "cannot take in parts, or where an op has the dimension twice.\n\n";
  text += table.to_string(colour);
  if (left_out > 0)
    text +=
        fmt::format("\n{} more regions with less work; --json has all, and every end.\n", left_out);
  return text;
}

}  // namespace cleave
