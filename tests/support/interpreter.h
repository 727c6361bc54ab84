// Runs a graph as memory sees it: one buffer a storage, values as strided views, and in-place nodes
// that really overwrite. Buffers start as NaN, so that a node that runs too early is noticed.
#pragma once

#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "graph/dependencies.h"
#include "graph/graph.h"

namespace cleave {

class Interpreter {
 public:
  // `graph` must outlive it. Parameters and states start as their Init says, data as zeros.
  explicit Interpreter(const Graph& graph, uint64_t seed = 1);

  // What a source holds at the start of each run, in row-major order.
  void set(const std::string& source, std::vector<double> numbers);
  const std::vector<double>& initial(const std::string& source) const {
    return initial_.at(source);
  }

  // Runs these nodes in this order, from fresh buffers.
  void run(std::span<const NodeId> order);
  // Runs all live nodes in the order of the trace.
  void run();

  // What lies in memory now where the value lies, in row-major order.
  std::vector<double> numbers(Value value) const;
  // The outputs, and the final values of states and parameters, by name.
  std::map<std::string, std::vector<double>> results() const;

 private:
  TensorView view(Value value);

  const Graph& graph_;
  uint64_t seed_;
  std::map<std::string, std::vector<double>> initial_;
  std::vector<std::vector<double>> buffers_;  // by storage; 8 bytes hold an element of any type
};

// Nodes that do work: live ones that are no views, in the order of the trace.
std::vector<NodeId> working_nodes(const Graph& graph);

// A random order of the nodes that respects the dependencies.
std::vector<NodeId> random_order(std::span<const NodeId> nodes, std::span<const Dependency> all,
                                 std::mt19937& random);

}  // namespace cleave
