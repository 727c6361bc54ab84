// One traced graph (of one micro-batch) with all that the search reads off it once: its dimensions,
// repeated layers, pieces, and the folded graph on which candidates are compared.
#pragma once

#include <memory>
#include <vector>

#include "graph/repeats.h"
#include "planner/dimensions.h"
#include "planner/family.h"
#include "planner/fold.h"
#include "planner/pieces.h"
#include "planner/pins.h"
#include "planner/placement_problem.h"

namespace cleave {

// What a piece of the model computes again in the backward: for each kind of piece (Piece::like),
// the places among its nodes of the forward, ascending.
struct RemakeMode {
  std::vector<std::vector<int32_t>> places;  // by Piece::like; empty: nothing

  bool empty() const { return places.empty(); }
  bool operator==(const RemakeMode&) const = default;
};

// A graph with what a placement problem needs of it.
struct PreparedGraph {
  std::shared_ptr<const Graph> graph;
  std::shared_ptr<const Dimensions> dimensions;
  Restrictions restrictions;                                // roles left empty
  std::vector<int32_t> group_of, group_of_value, piece_of;  // as in Grouping; may be empty
  std::vector<NodeId> twins;
  bool explicit_keeping = false;

  Grouping grouping() const {
    return {group_of, group_of_value, twins, piece_of, explicit_keeping};
  }
};

struct Outline {
  std::shared_ptr<const Graph> graph;
  std::vector<Piece> pieces;
  std::vector<int32_t> piece_of;  // by node
  FoldedGraph folded;             // its graph lies in `prepared`

  // The nodes that a piece of this kind has in this mode, as nodes of the whole graph: of every
  // piece for which `chosen` holds.
  std::vector<NodeId> nodes_of(const RemakeMode& mode, const std::vector<bool>& chosen) const;
  std::vector<NodeId> nodes_of(const RemakeMode& mode) const;  // of all pieces
};

// Layers that stand for others must be split alike: those of which placement pins name some, and
// others not, stand for themselves. Throws Error when a pin names nothing.
Outline outline_of(std::shared_ptr<const Graph> graph, const Pins& pins = {});

// The folded graph, in which all pieces compute again what the mode says.
PreparedGraph prepare_folded(const Outline& outline, const RemakeMode& mode);
// Any graph: pieces as its nodes' origins in the outline's graph have them.
PreparedGraph prepare(const Outline& outline, std::shared_ptr<const Graph> graph,
                      const std::vector<NodeId>& origin);

// The outline's graph itself, all of it.
PreparedGraph prepare(const Outline& outline);

// Whether repeated layers look something up by index, as those of a mixture of experts do.
// `prepared`: of the outline. False of a model in which nothing repeats.
bool looks_up_in_layers(const Outline& outline, const PreparedGraph& prepared);

// The classes that roles speak of; roles themselves are the caller's.
Restrictions restrictions_of(const Graph& graph, const Dimensions& dimensions);

}  // namespace cleave
