// What a step of several micro-batches need not do for each of them.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"

namespace cleave {

// By node: whether what it makes is the same in every micro-batch of a step, so that it is run when
// the step begins; what micro-batches read of it is held until the last of them is done. With
// several micro-batches that is a node of the forward that reads parameters which only the update
// changes, or what such nodes make, and nothing else: copies of weights in another type, say; never
// a view. And a transfer of what such nodes make, or one that is sent_once. What such a node reads
// is brought to it, and what it makes to where it is held, once a step too.
std::vector<bool> made_once(const Graph& graph);

// By source: of a parameter that the forward and the backward read through nodes made_once alone,
// what micro-batches read of what those make of it: its copies, which are held for the whole step.
// Else none.
std::vector<std::vector<Value>> copies_made_once(const Graph& graph);

// What adding a gradient to its accumulator takes part in.
enum class Adding : uint8_t {
  kNone,
  kAdds,    // it adds to an accumulator what a node of the other kind widens
  kWidens,  // it gives a gradient the accumulator's wider type, for that alone
};
// By node. What makes a gradient is taken to sum in the wider type in any case, as matrix products
// do, and to add to what is in memory as it stores its result: so widening is nothing to do by
// itself, and adding reads and writes the accumulator alone. Sums and look-ups are taken alike.
std::vector<Adding> addings(const Graph& graph);

}  // namespace cleave
