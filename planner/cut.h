// Cutting a step into pipeline chunks: which chunk runs each node, and transfers where a value
// passes from one chunk to another.
#pragma once

#include <vector>

#include "graph/graph.h"
#include "planner/rewrite.h"

namespace cleave {

// Cuts the graph before these nodes of its forward (ascending). `origin` of the result is by node
// of `graph`.
// - A node that follows another lies in its chunk. A parameter lies in the chunk of its first
//   reader in the forward; with it its gradient, its accumulator, its optimizer states and its
//   update. Data lie wherever they are read.
// - A transfer follows its reader's need: one for each (value, receiving chunk), from the chunk
// that
//   makes the value. It is of the phase of what it carries, or of the update when nothing else
//   reads it. The transfer of a parameter is of the forward, but see sent_once.
// - A sum over several chunks is first summed in each, then in the chunk of its reader; what goes
//   into an accumulator from several chunks goes into one of each ("name@chunk"), which are added
//   up once a step, in the update.
// - A state that each micro-batch counts up (and that only counts) is counted up in the forward of
//   its first reader's chunk; what reads it reads transferred copies, also there.
// Throws InternalError when there is no cut, or one is not in the forward, or a node of the
// backward would have to wait for a later one of an earlier chunk.
RewrittenGraph cut(const Graph& graph, const std::vector<NodeId>& cuts);

// Whether the transfer sends the same in every micro-batch of a step: what it carries is a source
// that only the update changes. Then it is sent once, at the step's start.
bool sent_once(const Graph& graph, const Node& transfer);

// The chunk that holds each source; -1: data, which every chunk that reads them is fed.
std::vector<int32_t> source_chunks(const Graph& graph, const std::vector<int32_t>& chunk_of);

}  // namespace cleave
