// What may not be reordered: read-after-write, write-after-read and write-after-write between the
// nodes of a graph, found by where their operands lie in memory. Nothing else orders two nodes.
#pragma once

#include <string_view>
#include <vector>

#include "graph/graph.h"

namespace cleave {

enum class DependencyKind : uint8_t { kReadAfterWrite, kWriteAfterRead, kWriteAfterWrite };
std::string_view name_of(DependencyKind kind);  // "read-after-write"

// `before` must run before `after`. A pair is listed once, with the first kind, in the order of the
// enumeration, that holds between them.
struct Dependency {
  NodeId before = kNoNode, after = kNoNode;
  DependencyKind kind = DependencyKind::kReadAfterWrite;
  bool operator==(const Dependency&) const = default;
};

// Whether the node only looks at its input's storage another way, and moves no numbers.
bool is_view(const Graph& graph, const Node& node);

// The dependencies of the trace, as if each storage were one buffer and every value a strided view
// of it, without those that a chain of others implies. Sorted by (after, before); `before` is
// always the smaller id.
// - A node reads the elements of its inputs, and writes those of its outputs: the whole target, or
//   the part that OpDef::written gives, in which case it does not read the target (input 0).
// - A view node moves no numbers and appears in no dependency: who reads a view depends on whoever
//   wrote its elements.
// - A read sees the elements as of its value's version. It depends on each node that wrote an
//   element which no later version, up to its own, overwrote.
// - A write depends on the last write of each element it overwrites, and on the reads since then.
// - A value that is read when part of it is already overwritten needs a copy of that part, taken
//   before; such elements order the read after their writers only.
// - What sources hold at first was written by nobody.
// When the graph declares outputs or finals, only live nodes (live_nodes) count; else all do.
std::vector<Dependency> dependencies(const Graph& graph);

}  // namespace cleave
