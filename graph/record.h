// A graph as plain records, on the way between its written forms and a Graph. Building one from
// records repeats what the tracer did, so that whatever is written down must agree with what is
// inferred again.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "graph/graph.h"

namespace cleave {

// The op of this name; null when there is none.
using OpLookup = const OpDef* (*)(std::string_view name);

struct SourceRecord {
  Source source;  // `value` as written; `final` kNoValue when it is the value itself
  TensorType type;
  int32_t where = 0;  // line or index, for messages
};

struct NodeRecord {
  std::string op;
  std::string factors;
  Attrs attrs;
  std::vector<Value> inputs, outputs, writes;
  std::vector<TensorType> types;  // of the outputs
  Phase phase = Phase::kForward;
  NodeId follows = kNoNode;
  std::string scope, file;
  int32_t line = 0;
  int32_t where = 0;
};

struct OutputRecord {
  Output output;
  int32_t where = 0;
};

struct GraphRecord {
  std::string name;
  int64_t micro_batches = 1;
  std::vector<SourceRecord> sources;  // by ascending value, like the nodes
  std::vector<NodeRecord> nodes;
  std::vector<OutputRecord> outputs;
};

GraphRecord to_record(const Graph& graph);

// Throws Error, its message beginning with place(where), at the first record that does not fit.
Graph build(const GraphRecord& record, OpLookup lookup,
            const std::function<std::string(int32_t where)>& place);

Phase phase_named(std::string_view name);             // throws Error
SourceKind source_kind_named(std::string_view name);  // throws Error
std::string_view name_of(Init::Kind kind);            // "normal"
Init::Kind init_named(std::string_view name);         // throws Error

}  // namespace cleave
