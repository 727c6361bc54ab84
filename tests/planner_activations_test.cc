// The activation memory of "Reducing Activation Recomputation in Large Transformer Models"
// (Korthikanti et al., 2022, table 2) out of the liveness of a traced layer: nothing below knows
// what is kept, only what is computed.
//
// The paper counts two bytes an element, and one byte an element for the masks of three dropouts.
// Cleave draws a mask again by its counters and keeps none, so the formulas go without them: s*b*h
// for each of the two dropouts before the residual stream, a*s*s*b for that of the attention.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>

#include "executor/lower.h"
#include "executor/memory_layout.h"
#include "planner/planner.h"
#include "planner/remake.h"
#include "tests/paper_layers.h"
#include "tracer/optimizer.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

Graph step(const Shapes& n, int64_t layers) {
  return trace_training_step(
      "layers",
      [&] {
        const Tensor tokens = data("tokens", {n.b, n.s}, DType::kI32, {"batch", "sequence"});
        Tensor x = Embedding("wte", 64, n.h)(tokens);
        for (int64_t i = 0; i < layers; ++i) x = layer(x, n, i);
        return mean(x);
      },
      {}, {.compute = DType::kBF16});
}

// Bytes of one rank that are live between the last instruction of the forward and the next, but for
// parameters, states, data and the loss.
int64_t live_after_forward(const Program& program) {
  int32_t last = -1;
  for (size_t i = 0; i < program.instrs.size(); ++i) {
    if (program.instrs[i].part == Part::kForward) last = static_cast<int32_t>(i);
  }
  std::set<int32_t> others;
  for (const ProgramSource& s : program.sources) others.insert(program.tensor(s.tensor).buffer);
  for (const ProgramOutput& o : program.outputs) others.insert(program.tensor(o.tensor).buffer);
  int64_t bytes = 0;
  for (size_t b = 0; b < program.buffers.size(); ++b) {
    const Buffer& buffer = program.buffers[b];
    if (!others.contains(static_cast<int32_t>(b)) && buffer.first <= last && buffer.last > last)
      bytes += buffer.bytes;
  }
  return bytes;
}

enum class Split { kTensor, kTensorAndSequence };

int64_t held(const Shapes& n, int64_t layers, Remake what, int64_t ranks, Split split) {
  const Graph traced = step(n, layers);
  const Graph graph = rewritten(traced, {.remade = remade_nodes(traced, what), .cuts = {}}).graph;
  const Dimensions dimensions = find_dimensions(graph);
  PlannerOptions options;
  if (split == Split::kTensor) options.preferences.choice = keeps_sequence(graph, dimensions);
  Mesh mesh;
  mesh.axes = {{"tp", ranks}};
  // A high price: what can be gathered again in the backward is not kept.
  const double price = split == Split::kTensorAndSequence ? 1.0 : 0.0;
  const auto plan = plan_with(graph, parse_cluster(fmt::format("{}xh100", ranks)), mesh,
                              {AxisRole::kInner}, {.low = price, .high = price}, options);
  EXPECT_TRUE(plan.has_value());
  const int64_t live = live_after_forward(lower(graph, *plan));
  EXPECT_EQ(plan->predicted.held_bytes - plan->predicted.state_bytes, live);
  return live;
}

struct Row {
  const char* name;
  Remake remake;
  int64_t ranks;
  Split split;
  double formula;  // in units of s*b*h bytes, masks included
  double masks;    // of that
};

void expect_formulas(const Shapes& n) {
  const double sbh = static_cast<double>(n.s * n.b * n.h);
  const double as_h = static_cast<double>(n.a * n.s) / static_cast<double>(n.h);
  const double t = 8;
  constexpr Split kTp = Split::kTensor, kSp = Split::kTensorAndSequence;
  const Row rows[] = {
      {"on one device", Remake::kNothing, 1, kTp, 34 + 5 * as_h, 2 + as_h},
      {"tp 8", Remake::kNothing, 8, kTp, 10 + 24 / t + 5 * as_h / t, 2 + as_h / t},
      {"tp 8, sp", Remake::kNothing, 8, kSp, (34 + 5 * as_h) / t, (2 + as_h) / t},
      {"tp 8, selective", Remake::kCore, 8, kTp, 10 + 24 / t, 2},
      {"tp 8, sp, selective", Remake::kCore, 8, kSp, 34 / t, 2 / t},
      {"full, on one device", Remake::kLayer, 1, kTp, 2, 0},
      {"tp 8, full", Remake::kLayer, 8, kTp, 2, 0},
      {"tp 8, sp, full", Remake::kLayer, 8, kSp, 2 / t, 0},
  };
  for (const Row& r : rows) {
    SCOPED_TRACE(r.name);
    const int64_t four = held(n, 4, r.remake, r.ranks, r.split);
    const int64_t three = held(n, 3, r.remake, r.ranks, r.split);
    const double layer = static_cast<double>(four - three) / sbh;
    fmt::print("{:22} {:8.3f} sbh a layer; the paper: {:8.3f} of which masks {:6.3f}\n", r.name,
               layer, r.formula, r.masks);
    EXPECT_NEAR(layer / (r.formula - r.masks), 1, 0.02);
  }
}

TEST(Activations, Gpt3) { expect_formulas({.h = 12288, .a = 96, .s = 2048, .b = 1}); }
TEST(Activations, Gpt22b) { expect_formulas({.h = 6144, .a = 64, .s = 2048, .b = 4}); }

}  // namespace
}  // namespace cleave
