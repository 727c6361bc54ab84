// Pins: what a user fixes before the search, as plain data. Written one a piece:
//
//   dp=N tp=N ...           the size of a mesh axis, by its role; others stay free
//   pp=N                    pipeline stages ("stages=N" too)
//   chunks=N                pieces of the model a stage
//   schedule=NAME           1f1b, interleaved, zero-bubble
//   micro=N                 micro-batches in a step, of the same sequences all together
//   zero=0|1|2|3            ZeRO over the dp axes: states, gradients, parameters in parts
//   recompute=none|selective|full
//   offload=on|off          optimizer states on the host
//   PATTERN:AXIS=PLACEMENT  replicate, shard(D), shard(D.K) (the K-th part of a dimension that is
//                           several in one), partial
//   PATTERN=recompute|keep  what the backward needs of these ops is computed again, or kept
//   PATTERN=stage N         these ops are on this stage, counted from 0
//   PATTERN=cut             the next chunk begins where what it names begins
//
// A name is parts with dots between them; in a pattern `*` stands for any characters of one part,
// `**` for any at all. An op is called scope.op ("layer.3.up.matmul"). For recompute, keep, stage
// and cut a pattern names ops of the forward, and everything inside a scope. For a placement it
// names parameters or states; or an op, for its first result; or a scope, for the parameters right
// inside it that have the dimension. AXIS is a role, or a0, a1, ...: the first mesh axis, the
// second.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "graph/graph.h"
#include "planner/family.h"
#include "planner/mesh.h"
#include "planner/schedule.h"

namespace cleave {

enum class Recompute : uint8_t {
  kNone,       // the backward finds everything kept
  kSelective,  // ops that contract what the model makes of its data with each other are computed
               // again, and what only connects them; what parameters are multiplied with is kept
  kFull,       // of every repeated layer only what enters it is kept
};
std::string_view name_of(Recompute mode);  // "none", "selective", "full"

struct PlacementPin {
  std::string text;  // as written
  std::string pattern, axis;
  Placement::Kind kind = Placement::Kind::kReplicate;
  int8_t dim = -1, part = -1;  // of a shard; part -1: any
};
struct NodePin {
  enum class Kind : uint8_t { kRemake, kKeep, kStage, kCut };
  std::string text;  // as written
  std::string pattern;
  Kind kind = Kind::kRemake;
  int32_t stage = -1;
};
struct AxisPin {
  AxisRole role = AxisRole::kData;
  int64_t size = 1;
};

struct Pins {
  std::vector<std::string> texts;  // as written
  std::vector<AxisPin> axes;       // each role once
  std::optional<int32_t> stages, chunks;
  std::optional<ScheduleKind> schedule;
  std::optional<int64_t> micro_batches;
  std::optional<int> zero;
  std::optional<Recompute> recompute;
  std::optional<bool> offload;
  std::vector<PlacementPin> placements;
  std::vector<NodePin> nodes;

  bool empty() const { return texts.empty(); }
};

// Reads pins, each written as above. Throws Error, beginning with `where` ("--pin") and the pin,
// on anything else, and when two of them contradict each other.
Pins parse_pins(std::span<const std::string> texts, std::string_view where);

// "h.*.mlp" and "h.3.mlp": the whole name. `inside`: also of what is inside: "h.3.mlp.up".
bool matches(std::string_view pattern, std::string_view name, bool inside = false);
// What pins call a node: "h.3.mlp.up.matmul".
std::string pin_name(const Graph& graph, NodeId node);

// Pins that name ops, on a graph.
struct NodePins {
  std::vector<int8_t> remade;     // by node: 1 computed again, 0 kept, -1 free
  std::vector<int32_t> stage_of;  // by node; -1: free
  std::vector<NodeId> cuts;       // ascending; a chunk begins there
};
// Throws Error, one line, when a pattern matches nothing of the graph's forward, or when two pins
// say different things of one op.
NodePins node_pins(const Pins& pins, const Graph& graph);

// Whether nothing can be as both say, on one axis.
bool contradict(const PlacementPin& a, const PlacementPin& b);
// What the placement pins mean on a graph. Throws Error, one line, when one matches nothing or
// something without that dimension, or when two say different things of one value and axis.
struct ValuePin {
  const PlacementPin* pin = nullptr;
  Value value = kNoValue;  // a parameter or state, or the first result of an op
};
std::vector<ValuePin> value_pins(const Pins& pins, const Graph& graph);

}  // namespace cleave
