#include "planner/ring.h"

#include <algorithm>

#include "graph/error.h"

namespace cleave {

bool carries(const OperandDims& dims, int factor) {
  return std::any_of(dims.begin(), dims.end(), [&](const DimFactors& d) {
    return std::find(d.begin(), d.end(), static_cast<int8_t>(factor)) != d.end();
  });
}

std::vector<RingMerge> ring_merges(const Node& node) {
  const std::string_view merge = node.op->merge->factors.text();
  const bool together = merge.substr(merge.find("->")).find(',') != std::string_view::npos;
  std::vector<RingMerge> result;
  for (size_t o = 0; o < node.outputs.size(); ++o) {
    if (result.empty() || !together) result.emplace_back();
    result.back().outputs.push_back(o);
  }
  for (RingMerge& m : result) {
    std::string once;
    for (size_t o : m.outputs) once += (once.empty() ? "" : ",") + node.signature->output_text(o);
    m.signature = &Signature::get(once + "," + once + "->" + once);
    for (const Factor& f : m.signature->factors()) {
      const int own = node.signature->factor(f.letter);
      CLEAVE_ASSERT(own >= 0, "'{}' lacks '{}'", node.signature->text(), f.letter);
      m.factors.push_back(static_cast<int8_t>(own));
    }
  }
  return result;
}

bool can_pass_round(const Node& node, int stays, int moves) {
  const Signature& s = *node.signature;
  if (node.op->merge == nullptr || stays < 0 || moves < 0 || stays == moves ||
      s.factors()[static_cast<size_t>(stays)].whole) {
    return false;
  }
  for (const OperandDims& dims : s.inputs()) {
    if (carries(dims, stays) && carries(dims, moves)) return false;
  }
  for (const RingMerge& m : ring_merges(node)) {
    for (size_t o : m.outputs) {
      const bool moved = carries(s.outputs()[o], moves);
      if (carries(s.outputs()[o], stays) == moved || (moved && m.outputs.size() > 1)) return false;
    }
  }
  return true;
}

}  // namespace cleave
