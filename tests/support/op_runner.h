// Runs one op, or a graph of ops, on given numbers: the smallest executor that could work.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "tests/support/op_cases.h"

namespace cleave::testing {

// One op with numbers: what a kernel is called for.
struct Application {
  const OpDef* op = nullptr;
  const Signature* signature = nullptr;
  Attrs attrs;
  std::vector<Extent> extents;
  std::vector<HostTensor> in;

  std::vector<int64_t> sizes() const;  // the local size of each factor
  std::vector<TensorType> in_types() const;
};

// How operands lie in memory. What is not part of a tensor is poisoned, and must stay so.
enum class MemoryLayout {
  kRowMajor,
  kPadded,      // rows with a gap after them
  kSpaced,      // a gap after every element
  kTransposed,  // the first dimension is the fastest
};

// A stretch of the host's memory that operands lie in.
struct HostBlock {
  char* data = nullptr;
  size_t bytes = 0;
};

struct RunOptions {
  MemoryLayout layout = MemoryLayout::kRowMajor;
  bool view = true;  // ops that can be views are; off: their kernel is called
  std::vector<std::pair<size_t, size_t>> in_place = {};  // outputs that share an input's memory
  // Instead of the op's kernel for the CPU; views then are never taken. The arguments' pointers lie
  // in these blocks, which it may change.
  std::function<void(const OpDef&, const OpCall&, const KernelArgs&, std::span<const HostBlock>)>
      kernel = {};
};

inline constexpr uint64_t kRunSeed = 7;

// The op's outputs, which with a kernel of the caller's may be bf16 or f16. Throws
// std::runtime_error when the op's types do not follow from its factors, or when it writes outside
// its outputs.
std::vector<HostTensor> run_op(const Application& application, const RunOptions& options = {});

// The application of a graph's node, on its whole sizes.
Application application_of(const Graph& graph, const Node& node,
                           const std::vector<HostTensor>& values);

// The numbers of every value of the graph, given those of its sources, in order. Writes in place
// make new tensors here.
std::vector<HostTensor> run_graph(const Graph& graph, const std::vector<HostTensor>& sources);

// The number of this type that is nearest.
double rounded(double x, DType dtype);

// Extents of factors that are not cut.
std::vector<Extent> whole_extents(std::span<const int64_t> sizes);

}  // namespace cleave::testing
