// The texts of the kernels that carry out a chain.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/chain_nodes.h"
#include "kernels/cuda/generated.h"

namespace cleave {

// A chain with how its operands lie.
struct ChainLoops {
  ChainPlan plan;
  ChainNodes nodes;
  std::vector<int64_t> sizes;        // by axis
  std::vector<LoopOperand> in, out;  // steps: one an axis
};
ChainLoops chain_loops(const KernelArgs& args);

// One kernel, to be launched with these blocks. It takes the operands, the results, the workspace,
// and, with masks, the run's seed and the stream of each.
struct ChainKernel {
  std::string text;
  int64_t across = 1, down = 1;  // the grid
  int block = 256;
};
std::vector<ChainKernel> chain_kernels(const ChainLoops& loops);

// Writes one kernel: what its kinds share. `scope`: the axes along which a value is one number for
// a thread; others are computed element by element, V next to each other at a time.
class ChainWriter {
 public:
  // Loops over some axes, joined where they can be, with the step of each item: operands, results,
  // masks.
  struct Nest {
    std::vector<int64_t> sizes;
    std::vector<std::vector<int64_t>> steps;  // by item
    int64_t count() const;
  };
  static Nest nest_over(const ChainLoops& loops, const std::vector<int8_t>& axes);
  // Most elements that can be moved at once, when the innermost of these loops goes along them and
  // the others are stepped over.
  static int vector_length(const ChainLoops& loops, const Nest& along, const Nest& others);

  // `along`: the loops whose innermost a vector goes along.
  ChainWriter(const ChainLoops& loops, AxisSet scope, int vector, const Nest& along);

  void line(std::string text) { text_ += text + "\n"; }
  std::string& text() { return text_; }
  // `resident`: blocks that a multiprocessor is to have room for at once.
  void begin(int block, int resident = 1);
  std::string end() { return text_ + "}\n"; }

  // "const int m0 = ...": the index of each loop, given the number of a vector, or element.
  void indices(const Nest& nest, const std::string& prefix, const std::string& number, int vector,
               bool large);
  // Where each item begins for this thread: b0, ...
  void bases(const Nest& nest, const std::string& prefix);

  bool in_scope(int n) const { return (nodes().at(n).axes & ~scope_) == 0; }
  bool live(int n) const { return live_[static_cast<size_t>(n)]; }
  // The values in scope of this stage which are not there yet.
  void scope_values(int stage);
  void have(int n) { defined_[static_cast<size_t>(n)] = true; }

  // Operands and masks that are loaded for these values.
  std::vector<int> loads_for(const std::vector<int>& roots) const;
  void declare_loads(const std::vector<int>& loads, const std::string& count);
  void load(const std::vector<int>& loads, const Nest& nest, const std::string& prefix,
            const std::string& at);
  // Computes the values of one element, `lane` of the vector `at`.
  void values(const std::vector<int>& roots, const std::string& at);
  std::string name(int n, const std::string& at) const;
  // Stores a vector of a result, declared by declare_result and filled by put.
  void declare_result(size_t r);
  void put(size_t r, const std::string& at);
  void store(size_t r, const Nest& nest, const std::string& prefix);
  void store_in_scope(size_t r);

  // Values that are computed once and kept in registers, by vector and lane.
  void keep(int n) { kept_[static_cast<size_t>(n)] = true; }
  bool is_kept(int n) const { return kept_[static_cast<size_t>(n)]; }
  // From here on the value is taken from where it is kept, if it is.
  void fill_kept(int n) { filled_[static_cast<size_t>(n)] = is_kept(n); }
  void keep_nothing() { kept_.assign(kept_.size(), false); }
  // Whether the value is computed for these.
  bool needs(const std::vector<int>& roots, int n) const;
  // These loads are one vector, whatever the vector at hand.
  void hoist(const std::vector<int>& loads);

  std::string fold(int n, const std::string& a, const std::string& b) const;
  std::string identity(int n) const;

  const ChainNodes& nodes() const { return loops_.nodes; }
  const char* number() const { return nodes().is_double ? "double" : "float"; }
  bool is_double() const { return nodes().is_double; }
  int vector() const { return vector_; }

 private:
  std::string offset(const Nest& nest, size_t item, const std::string& prefix) const;
  std::string operand_type(int n) const;
  void need(int n, std::vector<bool>& found) const;
  std::string call(const ChainNode& node, const std::string& at) const;
  std::string stored(size_t r, const std::string& value) const;

  const ChainLoops& loops_;
  AxisSet scope_;
  int vector_;
  std::vector<int64_t> last_step_;  // by item: from one element of a vector to the next
  std::string text_;
  std::vector<bool> live_, defined_, kept_, filled_, hoisted_;  // by node
};

}  // namespace cleave
