// From the graph of a loss to the graph of the next token's scores, from which text is generated.
#pragma once

#include "graph/graph.h"

namespace cleave {

// The scores (logits) of the token that follows one position, for any model whose loss is a
// cross-entropy with the data "targets": what that cross-entropy reads. `loss_graph`: as from
// trace() of the loss alone, where dropout is off.
//
// Data: "tokens" as before, and "position", an i32 scalar in [0, sequence). Output: "scores"
// [batch, vocab]. States keep their values, and sources that only the loss reads are gone. Ops that
// treat every position by itself, after the last one that does not, are left with the one position.
//
// That scores do not depend on the tokens after `position` is the model's own doing, and is not
// checked here. Throws Error when the loss has no such cross-entropy, or several.
Graph next_token_graph(const Graph& loss_graph);

}  // namespace cleave
