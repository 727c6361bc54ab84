// Everything the project knows about one op, as plain data.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "graph/kernel_args.h"
#include "graph/signature.h"
#include "graph/types.h"

namespace cleave {

class Graph;
struct Node;
struct OpDef;

// One application of an op, described without numbers. `extents` holds the size of each factor, in
// the signature's order: the whole sizes when tracing, a shard's when planning and lowering.
struct OpCall {
  const Signature& signature;
  std::span<const int64_t> extents;
  const Attrs& attrs;
  std::span<const TensorType> in;
  // How operands, then results, lie in memory, without their data, for those who ask about scratch
  // memory; empty: not known.
  std::span<const TensorView> placed = {};

  int64_t extent(char letter) const {
    return extents[static_cast<size_t>(signature.factor(letter))];
  }
};

// How a view lies in its storage: element (i, j, ...) is at offset + i*strides[0] + ...
struct Geometry {
  int64_t offset = 0;  // in elements
  Shape shape;
  Shape strides;  // in elements
  bool operator==(const Geometry&) const = default;
};

// What a gradient function sees: one node, and the gradients of its outputs. Nodes it adds belong
// to the backward phase, carry the forward node's source line, and follow its split; to follow,
// they name their factors by the same letters as the forward node (a capital equals its small).
class GradContext {
 public:
  GradContext(Graph& graph, NodeId node, std::span<const Value> output_grads)
      : graph_(graph), node_(node), output_grads_(output_grads) {}

  Value in(size_t i) const;
  Value out(size_t i) const;
  // The gradient of output i; kNoValue when nothing depends on that output.
  Value grad(size_t i) const { return output_grads_[i]; }
  const TensorType in_type(size_t i) const;
  const Signature& signature() const;
  const Attrs& attrs() const;
  int64_t extent(char letter) const;

  // Adds a node and returns its outputs (add) or its only output (add1). An empty factor string
  // means the op's own.
  std::vector<Value> add(const OpDef& op, std::vector<Value> inputs, std::string_view factors = {},
                         Attrs attrs = {});
  Value add1(const OpDef& op, std::vector<Value> inputs, std::string_view factors = {},
             Attrs attrs = {});

 private:
  Graph& graph_;
  NodeId node_;
  std::span<const Value> output_grads_;
};

// A request to write an op, whose factor `letter` is whole, with ops that can be split along it
// into `shards` parts. The new nodes go into `graph`; their reductions over the split factor are
// the only places where shards meet.
struct SplitRequest {
  Graph& graph;
  const OpCall& call;
  char letter;
  int64_t shards;
  std::span<const Value> inputs;
};

using InferFn = std::vector<TensorType> (*)(const OpCall&);
using FlopsFn = double (*)(const OpCall&);
using BytesFn = double (*)(const OpCall&, std::span<const TensorType> out);
// The gradient of each input, kNoValue where there is none.
using GradFn = std::vector<Value> (*)(GradContext&);
// The op's outputs computed by splittable ops; empty when this factor cannot be split.
using SplitFn = std::vector<Value> (*)(const SplitRequest&);
// The geometry of each output as a view of input 0, or nothing when it cannot be one.
using ViewFn = std::optional<std::vector<Geometry>> (*)(const OpCall&, const Geometry& in);
using WorkspaceFn = int64_t (*)(const OpCall&);  // bytes
using KernelFn = void (*)(const KernelArgs&);
using KernelsFn = void (*)(std::span<const KernelArgs>);

// Defaults, read off the factor string.
std::vector<TensorType> infer_from_factors(const OpCall&);  // element type of the first float input
double flops_from_factors(const OpCall&);  // product of the extents; twice that with a reduction
double bytes_from_factors(const OpCall&, std::span<const TensorType> out);  // each tensor once
double no_flops(const OpCall&);
double no_bytes(const OpCall&, std::span<const TensorType> out);

struct OpDef {
  std::string_view name;  // its spelling in the graph's text form
  FactorString factors;   // a template: "..." expands to the leading dimensions of the operands
  InferFn infer = infer_from_factors;
  FlopsFn flops = flops_from_factors;
  BytesFn bytes = bytes_from_factors;  // memory traffic
  BytesFn bytes_after = no_bytes;      // of them, what a product moves when its sums are made
  GradFn grad = nullptr;               // null: not differentiable
  SplitFn split = nullptr;             // how a whole factor is split after all; null: it is not
  // The op over the factor with this letter in parts, one part after the other: `merge` makes of
  // the results over some parts and those over others the results over both. It takes all results
  // of the one, then of the other, or, when it has one output, each result by itself.
  const OpDef* merge = nullptr;
  char merges = 0;
  ViewFn view = nullptr;  // outputs share input 0's storage when their geometry allows it
  // For in-place forms that overwrite only part of their target and read none of it (writing
  // through a slice): the part, as a view of input 0. Null: the whole target is written.
  ViewFn written = nullptr;
  WorkspaceFn workspace = nullptr;  // null: the kernel needs no scratch memory
  // Linear in all of its floating inputs taken together: partial sums pass through it.
  bool linear = false;
  // Its result is the sum of its operands, however many they are, in any grouping.
  bool sums = false;
  // Several matrix products in one kernel, whose results between are never stored; their rate goes
  // by the last size of the first operand. 0: a product by its factors, or none.
  int8_t fused_products = 0;
  // Its result lies on another pipeline stage than its operand.
  bool transfer = false;
  KernelFn cpu = nullptr;  // the reference, in f32 and f64; null: only ever a view
  // Launches work on the GPU; everything it needs besides, it finds or makes in the device's
  // context the first time. Null: there is no kernel for the GPU, or none in this build.
  KernelFn cuda = nullptr;
  // In every build: see kernels/cuda/workspace.h. Null: the GPU's kernel needs no scratch memory.
  WorkspaceFn cuda_workspace = nullptr;
  // Several applications at once, in few launches: none reads or writes what another writes, and
  // each has a workspace of its own. The bits are those of one after the other. Null: `cuda` is
  // called for each.
  KernelsFn cuda_many = nullptr;
  // In every build: a GPU's memory is laid out so that neighbours which need nothing of each other
  // can be given to cuda_many.
  bool together = false;
  // For kernels that are generated: each output at one place, in CUDA C++, of the operands there,
  // a, b, c, ...; several are separated by ";". "$value" stands for the attribute `value`. Numbers
  // are float, or double where an operand is f64; functions are those of kernels/cuda/prelude.h.
  std::string_view element = {};
};

// Expands the "..." of a template, and turns dimensions of size 1 under "..." that another operand
// has larger into "1". Throws Error when an operand has too few dimensions.
std::string expand_factors(std::string_view factors, std::span<const TensorType> in);

// The size of every factor, from the inputs' shapes and from attributes named by a letter. Throws
// Error when operands disagree, naming both sizes.
std::vector<int64_t> solve_extents(const Signature& signature, const Attrs& attrs,
                                   std::span<const TensorType> in);

// The shape of an operand with these dimensions.
Shape shape_of(const OperandDims& dims, std::span<const int64_t> extents);

}  // namespace cleave
