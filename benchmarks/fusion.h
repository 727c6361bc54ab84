// Which values a device that fuses never stores: chains of pointwise ops run as one kernel, and
// what passes inside stays in registers. A property of the graph alone, before it is placed.
#pragma once

#include <algorithm>
#include <vector>

#include "graph/graph.h"

namespace cleave {

// What one node does not pay for.
struct FusedNode {
  std::vector<bool> inputs, outputs;  // by operand: not read from, not written to memory
  bool starts = true;                 // false: its kernel has been started for a node before it
};

// Whether every element of the results depends only on the elements of the operands at its own
// place: by the factors, none is reduced, whole, or missing in a result.
inline bool is_pointwise(const Node& node) {
  if (node.inputs.empty() || node.op->view != nullptr || node.op->transfer) return false;
  const Signature& s = *node.signature;
  for (size_t f = 0; f < s.factors().size(); ++f) {
    if (s.factors()[f].whole) return false;
    for (const OperandDims& out : s.outputs()) {
      if (!Signature::carries(out, static_cast<int>(f))) return false;
    }
  }
  return !s.factors().empty();
}

// By node. A pointwise op joins the kernel of the op that made its latest operand when that is
// pointwise, of the same phase, and everything else it reads was there when the kernel began.
// Inside, a value is read from registers; it is not written when nobody else reads it.
inline std::vector<FusedNode> fused_nodes(const Graph& graph) {
  const std::vector<Node>& nodes = graph.nodes();
  std::vector<FusedNode> result(nodes.size());
  std::vector<NodeId> kernel(nodes.size(), kNoNode);  // by node: the first of its kernel
  for (size_t n = 0; n < nodes.size(); ++n) {
    const Node& node = nodes[n];
    result[n].inputs.assign(node.inputs.size(), false);
    result[n].outputs.assign(node.outputs.size(), false);
    if (!is_pointwise(node)) continue;
    kernel[n] = static_cast<NodeId>(n);
    NodeId latest = kNoNode;
    for (Value v : node.inputs) latest = std::max(latest, graph.value(v).producer);
    if (latest == kNoNode || kernel[static_cast<size_t>(latest)] == kNoNode) continue;
    const NodeId first = kernel[static_cast<size_t>(latest)];
    const Node& start = graph.node(first);
    const auto &there = start.outputs, &here = node.outputs;
    // One loop: over as many elements, in one phase.
    if (start.phase != node.phase ||
        numel(graph.type(there[0]).shape) != numel(graph.type(here[0]).shape)) {
      continue;
    }
    const bool ready = std::all_of(node.inputs.begin(), node.inputs.end(), [&](Value v) {
      const NodeId maker = graph.value(v).producer;
      return maker < first || kernel[static_cast<size_t>(maker)] == first;
    });
    if (!ready) continue;
    kernel[n] = first;
    result[n].starts = false;
  }
  // Who reads a value elsewhere.
  std::vector<bool> stored(graph.values().size(), false), read(graph.values().size(), false);
  for (const Output& o : graph.outputs()) stored[static_cast<size_t>(o.value)] = true;
  for (const Source& s : graph.sources()) stored[static_cast<size_t>(s.final)] = true;
  for (size_t n = 0; n < nodes.size(); ++n) {
    for (size_t i = 0; i < nodes[n].inputs.size(); ++i) {
      const Value v = nodes[n].inputs[i];
      const NodeId maker = graph.value(v).producer;
      read[static_cast<size_t>(v)] = true;
      const bool inside = maker != kNoNode && kernel[n] != kNoNode &&
                          kernel[static_cast<size_t>(maker)] == kernel[n];
      result[n].inputs[i] = inside;
      if (!inside) stored[static_cast<size_t>(v)] = true;
    }
  }
  for (size_t n = 0; n < nodes.size(); ++n) {
    for (size_t o = 0; o < nodes[n].outputs.size(); ++o) {
      const auto v = static_cast<size_t>(nodes[n].outputs[o]);
      result[n].outputs[o] = kernel[n] != kNoNode && read[v] && !stored[v];
    }
  }
  return result;
}

}  // namespace cleave
