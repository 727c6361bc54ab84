#include "graph/dependencies.h"

#include <algorithm>
#include <map>

#include "graph/algorithms.h"
#include "graph/element_set.h"
#include "graph/error.h"

namespace cleave {
namespace {

// One node touching one storage. A node reads before it writes.
struct Access {
  NodeId node = kNoNode;
  bool write = false;
  int32_t version = 0;  // of the value read; the version that the write makes
  Geometry geometry;
};

// Dependencies collected so far: the strongest kind of each pair.
using Pairs = std::map<Edge, DependencyKind>;

void put(Pairs& pairs, NodeId before, NodeId after, DependencyKind kind) {
  if (before == kNoNode || before == after) return;
  const auto [at, fresh] = pairs.emplace(Edge{before, after}, kind);
  if (!fresh) at->second = std::min(at->second, kind);
}

// What the node writes of the target that output `o` overwrites, and whether it leaves the target
// unread: ops that write through a slice.
std::optional<Geometry> partial_write(const Graph& graph, const Node& node, size_t o) {
  const Value target = node.overwrites(o);
  if (target == kNoValue || node.op->written == nullptr || node.inputs.empty() ||
      node.inputs[0] != target) {
    return std::nullopt;
  }
  const std::vector<TensorType> in = graph.input_types(node);
  const auto part = node.op->written(Graph::call(node, in), graph.value(target).geometry);
  if (!part) return std::nullopt;
  return (*part)[o];
}

// The accesses to each storage, in the order of the trace.
std::vector<std::vector<Access>> accesses(const Graph& graph, const std::vector<bool>& counts) {
  std::vector<std::vector<Access>> result(static_cast<size_t>(graph.num_storages()));
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (!counts[n] || is_view(graph, node)) continue;
    const NodeId id = static_cast<NodeId>(n);
    std::vector<std::optional<Geometry>> parts(node.outputs.size());
    bool reads_first = true;
    for (size_t o = 0; o < parts.size(); ++o) {
      parts[o] = partial_write(graph, node, o);
      reads_first &= !parts[o].has_value();
    }
    for (size_t i = reads_first ? 0 : 1; i < node.inputs.size(); ++i) {
      const ValueInfo& value = graph.value(node.inputs[i]);
      result[static_cast<size_t>(value.storage)].push_back(
          {id, false, value.version, value.geometry});
    }
    for (size_t o = 0; o < parts.size(); ++o) {
      const ValueInfo& value = graph.value(node.outputs[o]);
      result[static_cast<size_t>(value.storage)].push_back(
          {id, true, value.version, parts[o].value_or(value.geometry)});
    }
  }
  return result;
}

// Most storages: one write of all of it, before everything else.
bool written_once(const std::vector<Access>& list) {
  return std::none_of(list.begin(), list.end(),
                      [](const Access& a) { return a.write && a.version > 0; });
}

// The pairs of accesses to one storage that meet in an element.
void collect(const std::vector<Access>& list, Pairs& pairs) {
  std::vector<Geometry> views;
  for (const Access& a : list) views.push_back(a.geometry);
  const ElementGrid grid(views);
  struct Touch {
    const Access* access;
    ElementSet elements;  // of reads: those not overwritten since
  };
  std::vector<Touch> writes, reads;
  for (const Access& a : list) {
    ElementSet elements = grid.set(a.geometry);
    const auto kind = a.write ? DependencyKind::kWriteAfterWrite : DependencyKind::kReadAfterWrite;
    ElementSet unexplained = elements;  // whose last write, as of the version, is further back
    for (size_t w = writes.size(); w-- > 0 && !unexplained.empty();) {
      const Touch& write = writes[w];
      if (write.access->version > a.version || !overlap(unexplained, write.elements)) continue;
      put(pairs, write.access->node, a.node, kind);
      subtract(unexplained, write.elements);
    }
    if (a.write) {
      for (Touch& read : reads) {
        if (!overlap(read.elements, elements)) continue;
        put(pairs, read.access->node, a.node, DependencyKind::kWriteAfterRead);
        subtract(read.elements, elements);
      }
      std::erase_if(reads, [](const Touch& read) { return read.elements.empty(); });
      writes.push_back({&a, std::move(elements)});
    } else {
      // Elements that a later version has overwritten come from a copy.
      for (const Touch& write : writes) {
        if (write.access->version > a.version) subtract(elements, write.elements);
      }
      if (!elements.empty()) reads.push_back({&a, std::move(elements)});
    }
  }
}

}  // namespace

std::string_view name_of(DependencyKind kind) {
  switch (kind) {
    case DependencyKind::kReadAfterWrite: return "read-after-write";
    case DependencyKind::kWriteAfterRead: return "write-after-read";
    case DependencyKind::kWriteAfterWrite: return "write-after-write";
  }
  return "?";
}

bool is_view(const Graph& graph, const Node& node) {
  if (node.op->view == nullptr || node.inputs.empty() || node.overwrites(0) != kNoValue) {
    return false;
  }
  return graph.value(node.outputs[0]).storage == graph.value(node.inputs[0]).storage;
}

std::vector<Dependency> dependencies(const Graph& graph) {
  const bool declared =
      !graph.outputs().empty() || std::any_of(graph.sources().begin(), graph.sources().end(),
                                              [](const Source& s) { return s.final != s.value; });
  const std::vector<bool> counts =
      declared ? live_nodes(graph) : std::vector<bool>(graph.nodes().size(), true);
  Pairs pairs;
  for (const std::vector<Access>& list : accesses(graph, counts)) {
    if (written_once(list)) {
      const NodeId writer = !list.empty() && list[0].write ? list[0].node : kNoNode;
      for (const Access& a : list) {
        put(pairs, writer, a.node, DependencyKind::kReadAfterWrite);
      }
    } else {
      collect(list, pairs);
    }
  }
  Digraph all{static_cast<int32_t>(graph.nodes().size()), {}};
  all.edges.reserve(pairs.size());
  for (const auto& [pair, kind] : pairs) all.edges.push_back(pair);
  std::vector<Dependency> result;
  for (const Edge& e : transitive_reduction(all)) {
    result.push_back({e.from, e.to, pairs.at(e)});
  }
  std::sort(result.begin(), result.end(), [](const Dependency& a, const Dependency& b) {
    return a.after != b.after ? a.after < b.after : a.before < b.before;
  });
  return result;
}

}  // namespace cleave
