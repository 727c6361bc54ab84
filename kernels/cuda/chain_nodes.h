// A chain as the steps of generated kernels: loads, expressions of one element, and reductions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/chain.h"

namespace cleave {

using AxisSet = uint64_t;

struct ChainNode {
  enum class Kind : uint8_t { kOperand, kMask, kElement, kReduce };
  Kind kind = Kind::kElement;
  int32_t index = -1;   // of the operand, or of the dropout whose mask it is
  std::string text;     // kElement: an expression of a, b, c, ...
  std::vector<int> in;  // nodes
  bool max = false;     // kReduce: the maximum, not the sum
  AxisSet axes = 0;     // along which its value changes
  int stage = 0;        // so many reductions, one after the other, are before it
  bool costly = false;  // an expression that is not to be computed twice without need
};

// A dropout's mask: numbers of a stream, counted along these axes in row-major order.
struct ChainMask {
  std::string name;
  double rate = 0;
  int32_t step = -1;  // the operand that holds the step
  std::vector<int8_t> axes;
};

struct ChainNodes {
  std::vector<ChainNode> nodes;  // each after what it reads
  std::vector<ChainMask> masks;
  std::vector<int> results;  // nodes
  bool is_double = false;    // numbers are f64

  const ChainNode& at(int n) const { return nodes[static_cast<size_t>(n)]; }
};

// `in`: the types of the operands; `extents`: the size of each axis.
ChainNodes nodes_of(const Chain& chain, const Signature& signature,
                    std::span<const int64_t> extents, std::span<const DType> in,
                    std::span<const DType> out);

}  // namespace cleave
