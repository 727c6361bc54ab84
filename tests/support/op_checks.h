// What must hold of every op, checked from its factor string: shards put together again are the
// whole; gradients are the differences'; linear ops are linear. A check gives the mistakes it
// found as text, so that tests of the checks themselves can plant some.
#pragma once

#include <string>
#include <vector>

#include "tests/support/op_runner.h"

namespace cleave::testing {

using Mistakes = std::vector<std::string>;

// All of what follows on one case. Exceptions are mistakes, too.
Mistakes check_case(const OpCase& c);

// A case with numbers drawn; other seeds give other numbers. With f32, floating inputs are f32.
Application application_of(const OpCase& c, int seed = 1, bool f32 = false);

// Every factor that is not whole split 2 ways, 4 ways, and 2 ways in two blocks; every two such
// factors split 2 ways each. A kernel is told where a shard lies only along indexed factors.
Mistakes check_splits(const Application& a);
// Every whole factor for which the op has a `split`, for 2 and 4 shards: the ops it is written with
// give the same numbers, pass check_splits, and can be split along that factor all the way.
Mistakes check_decompositions(const Application& a);
// Gradients against central differences of a weighted sum of the outputs; the nodes of the backward
// pass check_splits, and use the forward's letters for the same sizes.
Mistakes check_gradients(const Application& a, size_t grad_outputs);
// f(a + b) = f(a) + f(b), for an op that says so.
Mistakes check_linear(const Application& a, const Application& b);
// Any strides, in place, view or copy: the same numbers.
Mistakes check_memory(const Application& a, std::vector<std::pair<size_t, size_t>> in_place);
// Flops and bytes are finite, positive, and no more for a shard than for the whole.
Mistakes check_costs(const Application& a);
// f32 against f64 on the same numbers.
Mistakes check_f32(const OpCase& c);

}  // namespace cleave::testing
