// The graph: what was recorded when a model was run once on dummy tensors. Nodes and values live in
// vectors and are named by index; nodes stand in the order in which they were traced.
//
// A value is one version of (part of) a storage. Most ops make a new storage; a view op's outputs
// share the storage and the version of its input; an in-place op's output is the next version of
// the storage it overwrites. Values are never changed: an op that overwrites a storage makes a new
// value, and the old one is what the storage held before.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graph/attrs.h"
#include "graph/op.h"
#include "graph/types.h"

namespace cleave {

enum class Phase : uint8_t { kForward, kBackward, kUpdate };
std::string_view name_of(Phase phase);

// How a state starts. Numbers come from a generator keyed by (seed, state's name, global index).
struct Init {
  enum class Kind : uint8_t { kConstant, kNormal, kUniform };
  Kind kind = Kind::kConstant;
  double a = 0;  // the constant; the standard deviation; the bound: uniform in [-a, a)
  bool operator==(const Init&) const = default;
};

enum class SourceKind : uint8_t {
  kData,       // fed anew each step (tokens)
  kParameter,  // a trained weight
  kState,      // kept from step to step, not trained (an optimizer's moments, the step count)
  // Starts every step at zero; each micro-batch of the step adds to it. Written before the update
  // only. No part of a checkpoint.
  kAccumulator,
};
std::string_view name_of(SourceKind kind);

// A value that the graph does not compute.
struct Source {
  SourceKind kind = SourceKind::kData;
  std::string name;  // unique in the graph
  Value value = kNoValue;
  Init init;  // of parameters and states
  // Of parameters and states: the value that the next step starts from; `value` when unchanged.
  Value final = kNoValue;
  std::vector<std::string> roles;  // of data: what each dimension is ("batch", "sequence")
};

struct Output {
  std::string name;
  Value value = kNoValue;
};

struct Node {
  const OpDef* op = nullptr;
  const Signature* signature = nullptr;
  Attrs attrs;
  std::vector<int64_t> extents;  // size of each factor of the signature
  std::vector<Value> inputs;
  std::vector<Value> outputs;
  // For each output: the value it overwrites in place, kNoValue for a new storage. Empty when
  // nothing is overwritten.
  std::vector<Value> writes;
  Phase phase = Phase::kForward;
  NodeId follows = kNoNode;  // the node whose split this one shares (its forward); -1: its own
  SourceLoc loc;
  int32_t scope = 0;  // index into Graph::scopes

  Value overwrites(size_t output) const { return writes.empty() ? kNoValue : writes[output]; }
};

struct ValueInfo {
  TensorType type;
  int32_t storage = 0;
  int32_t version = 0;
  Geometry geometry;          // how it lies in its storage
  NodeId producer = kNoNode;  // kNoNode: a source
  int32_t output = 0;         // which of the producer's outputs
  int32_t source = -1;        // index into Graph::sources; -1 when a node computes it
};

// What Graph::add gives to the nodes it makes, besides what the caller names.
struct Cursor {
  Phase phase = Phase::kForward;
  NodeId follows = kNoNode;
  SourceLoc loc;
  int32_t scope = 0;
};

class Graph {
 public:
  std::string name = "graph";
  // How often a step runs the forward and the backward, on new data each time, before it runs the
  // update once. Above 1 the gradients are summed in accumulators.
  int64_t micro_batches = 1;
  Cursor cursor;

  // Adds a source and returns its value.
  Value add_source(Source source, TensorType type);
  // Adds a node and returns its outputs. `factors`: empty for the op's own template, or a full
  // factor string. `writes`: as Node::writes; what is overwritten must be the newest version of
  // its storage. Throws Error when shapes do not fit the factors.
  std::vector<Value> add(const OpDef& op, std::vector<Value> inputs, std::string_view factors = {},
                         Attrs attrs = {}, std::vector<Value> writes = {});
  // The same for an op with one output.
  Value add1(const OpDef& op, std::vector<Value> inputs, std::string_view factors = {},
             Attrs attrs = {}, std::vector<Value> writes = {});
  void add_output(std::string output_name, Value value);
  // Declares the value from which the next step's state starts.
  void set_final(Value source, Value final);

  const std::vector<Node>& nodes() const { return nodes_; }
  const Node& node(NodeId n) const { return nodes_[static_cast<size_t>(n)]; }
  const std::vector<ValueInfo>& values() const { return values_; }
  const ValueInfo& value(Value v) const { return values_[static_cast<size_t>(v)]; }
  const TensorType& type(Value v) const { return value(v).type; }
  const std::vector<Source>& sources() const { return sources_; }
  const std::vector<Output>& outputs() const { return outputs_; }
  // The source whose value is v, or that has this name; null when there is none.
  const Source* source_of(Value v) const;
  const Source* source_named(const std::string& source_name) const;
  int32_t num_storages() const { return static_cast<int32_t>(newest_.size()); }
  // The newest version that the storage has reached.
  int32_t newest_version(int32_t storage) const { return newest_[static_cast<size_t>(storage)]; }

  int32_t intern_file(std::string_view file);
  int32_t intern_scope(std::string_view scope);
  const std::vector<std::string>& files() const { return files_; }
  const std::vector<std::string>& scopes() const { return scopes_; }
  std::string place(SourceLoc loc) const;  // "gpt.cc:42"; "?" when unknown

  // The types of a node's inputs, and the node as an OpCall on its whole sizes. The span `in` must
  // outlive the call.
  std::vector<TensorType> input_types(const Node& node) const;
  static OpCall call(const Node& node, std::span<const TensorType> in) {
    return {*node.signature, node.extents, node.attrs, in};
  }

 private:
  friend struct GraphSurgeon;  // tests break graphs with it, to see that verify notices
  Value add_value(ValueInfo info);

  std::vector<Node> nodes_;
  std::vector<ValueInfo> values_;
  std::vector<Source> sources_;
  std::vector<Output> outputs_;
  std::vector<int32_t> newest_;  // by storage
  std::unordered_map<std::string, size_t> source_named_;
  std::vector<std::string> files_;
  std::vector<std::string> scopes_ = {""};
};

// The nodes that contribute to an output or to a state's final value, in order; the rest are dead.
std::vector<bool> live_nodes(const Graph& graph);
// A copy without dead nodes, dead values, and data that nothing reads.
Graph without_dead_nodes(const Graph& graph);

}  // namespace cleave
