// Ops whose operands pass round: each rank of a mesh axis keeps its part of one factor and sees the
// parts of another (OpDef::merges) one after the other. Context parallelism is such a ring.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace cleave {

// How results over some parts of the factor that passes round become, with those over others,
// results over both: OpDef::merge as a call.
struct RingMerge {
  std::vector<size_t> outputs;  // of the node, that it takes and gives
  const Signature* signature = nullptr;
  std::vector<int8_t> factors;  // by factor of the signature: the node's
};
// One for all results, or one for each.
std::vector<RingMerge> ring_merges(const Node& node);

bool carries(const OperandDims& dims, int factor);

// Whether the node can keep its part of factor `stays` and see those of `moves`: no operand has
// both, every result exactly one, and results merged together only the one that stays.
bool can_pass_round(const Node& node, int stays, int moves);

}  // namespace cleave
