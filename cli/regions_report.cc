#include "cli/regions_report.h"

#include <fmt/ranges.h>

#include <map>
#include <tuple>

#include "cli/format.h"
#include "graph/error.h"
#include "planner/regions.h"
#include "viz/names.h"

namespace cleave {
namespace {

constexpr double kSmallestShare = 0.005;  // of flops; smaller regions are only counted
constexpr size_t kClassWidth = 40;
constexpr size_t kPlaceWidth = 44;

// Sync points of one region with the same kind, op, phase and source line. Those of the update are
// left out: each is one number, a part of the gradient's norm.
struct SyncRow {
  SyncPoint first;
  int64_t count = 0;
  double bytes = 0;  // of all of them
  bool same_scope = true;
};

std::string scope_of(const Graph& graph, NodeId n) {
  return folded_name(graph.scopes()[static_cast<size_t>(graph.node(n).scope)]);
}

std::vector<SyncRow> rows_of(const Graph& graph, const std::vector<SyncPoint>& syncs) {
  std::map<std::tuple<SyncKind, const OpDef*, Phase, int32_t, int32_t>, size_t> known;
  std::vector<SyncRow> rows;
  for (const SyncPoint& s : syncs) {
    if (s.phase == Phase::kUpdate) continue;
    const Node& node = graph.node(s.node);
    const auto [at, added] = known.emplace(
        std::tuple(s.kind, node.op, s.phase, node.loc.file, node.loc.line), rows.size());
    if (added) rows.push_back({s});
    SyncRow& row = rows[at->second];
    ++row.count;
    row.bytes += s.bytes;
    row.same_scope &= scope_of(graph, s.node) == scope_of(graph, row.first.node);
  }
  return rows;
}

// The factors in which the op meets the class; several are in each other's way.
std::string factors_of(const Graph& graph, const Dimensions& dims, NodeId n, ClassId c) {
  std::vector<std::string> letters;
  const auto& factors = dims.factors[static_cast<size_t>(n)];
  for (size_t f = 0; f < factors.size(); ++f) {
    for (const Atom& a : factors[f]) {
      if (a.dimension_class != c) continue;
      letters.emplace_back(1, graph.node(n).signature->factors()[f].letter);
      break;
    }
  }
  return fmt::format("{}", fmt::join(letters, " with "));
}

// What is common to the row's places: "h.*.mlp gpt2.cc:29".
std::string place_of(const Graph& graph, const SyncRow& row) {
  const std::string line = graph.place(graph.node(row.first.node).loc);
  std::string scope = scope_of(graph, row.first.node);
  if (!row.same_scope) scope = scope.substr(0, scope.rfind('.') + 1) + "*";
  return scope.empty() ? line : cut(scope, kPlaceWidth) + " " + line;
}

// What the scopes of the region's forward ops have in common.
std::string scope_of(const Graph& graph, const Region& region) {
  std::string common;
  bool first = true;
  for (NodeId n : region.nodes) {
    if (graph.node(n).phase != Phase::kForward) continue;
    common = first ? scope_of(graph, n) : common_scope(common, scope_of(graph, n));
    first = false;
  }
  return common.empty() ? "" : cut(common, kPlaceWidth);
}

double bytes_in(const Region& region, Phase phase) {
  double bytes = 0;
  for (const SyncPoint& s : region.syncs) bytes += s.phase == phase ? s.bytes : 0;
  return bytes;
}

}  // namespace

std::string regions_report(const Graph& graph) {
  const Dimensions dims = find_dimensions(graph);
  Table classes(
      {"class of dimensions", ">size", ">regions", ">ops", ">flops", ">forward", ">backward"});
  Table ends({"class", "ends by", "op", "in", "phase", ">bytes", "", "where"});
  int64_t small = 0;
  for (const RegionGroup& g : fold_regions(graph, find_regions(graph, dims))) {
    const Region& r = g.first;
    if (r.flops_share < kSmallestShare) {
      small += g.count;
      continue;
    }
    const std::string name = cut(class_name(dims, r.dimension_class), kClassWidth);
    classes.add({name, fmt::format("{}", dims.classes[static_cast<size_t>(r.dimension_class)].size),
                 fmt::format("{}", g.count), fmt::format("{}", r.nodes.size()),
                 percent_text(r.flops_share), bytes_text(bytes_in(r, Phase::kForward)),
                 bytes_text(bytes_in(r, Phase::kBackward)), scope_of(graph, r)});
    std::string shown = g.count > 1 ? fmt::format("{} (x{})", name, g.count) : name;
    for (const SyncRow& row : rows_of(graph, r.syncs)) {
      ends.add({shown, std::string(name_of(row.first.kind)),
                std::string(graph.node(row.first.node).op->name),
                factors_of(graph, dims, row.first.node, r.dimension_class),
                std::string(name_of(row.first.phase)),
                bytes_text(row.bytes / static_cast<double>(row.count)),
                row.count > 1 ? fmt::format("x{}", row.count) : "", place_of(graph, row)});
      shown.clear();
    }
  }
  std::string text =
      "\nSplit a class, and every device runs its part of a region alone; where the region ends,\n"
      "devices meet. ops and bytes are one region's, flops all its copies' share of the step.\n\n";
  text += classes.to_string() + "\nWhere regions end, bytes each time:\n\n" + ends.to_string();
  if (small > 0) {
    text += fmt::format("\n{} more regions have less than {} of the flops each; --json has all.\n",
                        small, percent_text(kSmallestShare));
  }
  return text;
}

}  // namespace cleave
