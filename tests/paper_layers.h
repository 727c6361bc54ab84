// Layers of a transformer whose attention is written out, and what "Reducing Activation
// Recomputation in Large Transformer Models" (Korthikanti et al., 2022) computes again of them.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "graph/repeats.h"
#include "planner/dimensions.h"
#include "planner/placement_problem.h"
#include "planner/remake.h"
#include "tracer/nn.h"

namespace cleave::testing {

struct Shapes {
  int64_t h, a, s, b;
};

// The core of attention is written out: products, softmax and dropout.
inline Tensor layer(const Tensor& x, const Shapes& n, int64_t i) {
  const int64_t e = n.h / n.a;
  const Scope scope(fmt::format("h.{}", i));
  const LayerNorm ln_1("ln_1", n.h), ln_2("ln_2", n.h);
  const Linear qkv("qkv", n.h, 3 * n.h), proj("proj", n.h, n.h);
  const Linear fc("fc", n.h, 4 * n.h), out("out", 4 * n.h, n.h);
  const auto heads = qkv(ln_1(x)).view({n.b, n.s, 3, n.a, e}).unbind(2);  // [b, s, a, e] each
  const auto by_head = [](const Tensor& t) { return t.transpose(1, 2); };
  const Tensor q = by_head(heads[0]), k = by_head(heads[1]), v = by_head(heads[2]);
  const Tensor scores = matmul(q, k.transpose(2, 3)) * (1 / std::sqrt(double(e)));  // [b, a, s, s]
  const Tensor weights = Dropout("core", 0.1)(softmax(scores));
  const Tensor attended = matmul(weights, v).transpose(1, 2).reshape({n.b, n.s, n.h});
  const Tensor y = x + Dropout("drop_1", 0.1)(proj(attended));
  return y + Dropout("drop_2", 0.1)(out(gelu(fc(ln_2(y)))));
}

enum class Remake { kNothing, kCore, kLayer };

// Copies of parameters in half precision are no activations: they are cast again in the backward.
inline std::vector<NodeId> remade_nodes(const Graph& graph, Remake what) {
  const Layers layers = layers_of(graph, repeats(graph));
  std::vector<bool> data(graph.values().size(), false), carried(graph.values().size(), false);
  for (const Source& s : graph.sources()) {
    data[static_cast<size_t>(s.value)] = s.kind == SourceKind::kData;
  }
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) continue;
    for (Value v : node.inputs) {
      const NodeId maker = graph.value(v).producer;
      if (maker == kNoNode) continue;
      carried[size_t(v)] =
          carried[size_t(v)] || layers.nodes[static_cast<size_t>(maker)] != layers.nodes[n];
    }
  }
  const std::vector<bool> may = can_be_remade(graph);
  std::vector<NodeId> result;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase != Phase::kForward) continue;
    const bool of_data = std::any_of(node.inputs.begin(), node.inputs.end(),
                                     [&](Value v) { return data[static_cast<size_t>(v)]; });
    for (Value v : node.outputs) data[static_cast<size_t>(v)] = of_data;
    const bool core = graph.type(node.outputs[0]).shape.size() == 4 &&
                      graph.type(node.outputs[0]).shape[2] == graph.type(node.outputs[0]).shape[3];
    const bool inside = layers.nodes[n].copy >= 0 && !carried[size_t(node.outputs[0])];
    if (!may[n]) continue;
    if (!of_data || (what == Remake::kCore && core) || (what == Remake::kLayer && inside)) {
      result.push_back(static_cast<NodeId>(n));
    }
  }
  return result;
}

// No op is split along the sequence.
inline auto keeps_sequence(const Graph& graph, const Dimensions& dimensions) {
  const ClassId sequence = dimensions.class_with_role("sequence");
  return [&graph, &dimensions, sequence](NodeId leader, const std::vector<AxisOption>& choice) {
    const auto& factors = dimensions.factors[static_cast<size_t>(leader)];
    for (size_t f = 0; f < factors.size(); ++f) {
      const char letter = graph.node(leader).signature->factors()[f].letter;
      for (const AxisOption& o : choice) {
        if (o.letter == std::tolower(letter) &&
            factors[f][static_cast<size_t>(o.atom)].dimension_class == sequence) {
          return std::numeric_limits<double>::infinity();
        }
      }
    }
    return 0.0;
  };
}

}  // namespace cleave::testing
