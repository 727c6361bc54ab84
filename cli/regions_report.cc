#include "cli/regions_report.h"

#include "cli/format.h"
#include "graph/error.h"
#include "planner/regions.h"
#include "viz/names.h"

namespace cleave {

std::string regions_report(const Graph& graph) {
  const Dimensions dims = find_dimensions(graph);
  Table table({"class", ">size", ">regions", ">ops", ">flops", ">syncs", "bytes"});
  for (const RegionGroup& g : fold_regions(graph, find_regions(graph, dims))) {
    table.add({class_name(dims, g.first.dimension_class),
               fmt::format("{}", dims.classes[size_t(g.first.dimension_class)].size),
               fmt::format("{}", g.count), fmt::format("{}", g.first.nodes.size()),
               percent_text(g.first.flops_share), fmt::format("{}", g.first.syncs.size()), ""});
    for (const SyncGroup& s : fold_syncs(graph, g.first.syncs)) {
      table.add({"  " + std::string(name_of(s.first.kind)),
                 graph.node(s.first.node).op->name.data(), fmt::format("x{}", s.count),
                 std::string(name_of(s.first.phase)), bytes_text(s.first.bytes), "",
                 s.first.place});
    }
  }
  return table.to_string();
}

}  // namespace cleave
