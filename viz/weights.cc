#include "viz/weights.h"

#include "viz/units.h"

namespace cleave {
namespace {

size_t at(int32_t i) { return static_cast<size_t>(i); }

}  // namespace

std::vector<std::string> part_names(const Graph& graph) {
  const Units units = find_units(graph, ViewLevel::kModel);
  std::vector<std::string> names;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const GraphUnit& u = units.units[at(units.of_node[n])];
    names.push_back(u.phase == Phase::kUpdate ? "" : unit_name(graph, units, u));
  }
  return names;
}

}  // namespace cleave
