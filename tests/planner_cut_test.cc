// Graphs cut into pipeline chunks: what passes between them, and that they compute what they did.
#include "planner/cut.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "graph/text.h"
#include "graph/verify.h"
#include "kernels/ops.h"
#include "tests/training_pipeline.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT

// What each chunk reads, it has: made there, fed, or received.
void expect_parted(const RewrittenGraph& r) {
  const Graph& g = r.graph;
  ASSERT_EQ(r.chunk_of.size(), g.nodes().size());
  ASSERT_EQ(r.origin.size(), g.nodes().size());
  const std::vector<int32_t> sources = source_chunks(g, r.chunk_of);
  const auto home = [&](Value v) {
    const ValueInfo& info = g.value(v);
    return info.producer == kNoNode ? sources[static_cast<size_t>(info.source)]
                                    : r.chunk_of[static_cast<size_t>(info.producer)];
  };
  std::set<std::pair<Value, int32_t>> sent;
  for (size_t n = 0; n < g.nodes().size(); ++n) {
    const Node& node = g.nodes()[n];
    const int32_t chunk = r.chunk_of[n];
    if (node.op->transfer) {
      EXPECT_TRUE(sent.emplace(node.inputs[0], chunk).second) << "sent twice: " << n;
      EXPECT_EQ(r.origin[n], kNoNode);
      // What makes a micro-batch's forward goes to later chunks, its backward to earlier ones.
      const int32_t from = home(node.inputs[0]);
      if (node.phase == Phase::kBackward) {
        EXPECT_LT(chunk, from) << n;
      }
      if (node.phase == Phase::kForward && !sent_once(g, node)) {
        EXPECT_GE(chunk, from) << n;
      }
      continue;
    }
    for (Value v : node.inputs) {
      EXPECT_TRUE(home(v) < 0 || home(v) == chunk)
          << to_text(g, static_cast<NodeId>(n)) << " in " << chunk << " reads of " << home(v);
    }
    if (node.follows != kNoNode) {
      EXPECT_EQ(r.chunk_of[static_cast<size_t>(node.follows)], chunk) << n;
    }
  }
}

struct Shown {
  std::map<Phase, int> transfers;
  int once = 0;
};

Shown transfers_of(const Graph& g) {
  Shown shown;
  for (const Node& n : g.nodes()) {
    if (!n.op->transfer) continue;
    ++shown.transfers[n.phase];
    shown.once += sent_once(g, n);
  }
  return shown;
}

TEST(Cut, GraphsTrainAsBeforeOnOneDevice) {
  double worst = 0;
  size_t graphs = 0;
  for (size_t m = 0; m < models().size(); ++m) {
    const Model& model = models()[m];
    const ModelConfig config = config_for(model, 2);
    for (const int64_t micro_batches : {1, 4}) {
      const Graph graph = step_graph(config, micro_batches, DType::kF64, model.optimizer);
      const Curve one = train_in_parts(lower(graph, plan_for(graph, "1", {})), graph, config);
      for (const int chunks : {2, 3, 4, 8}) {
        SCOPED_TRACE(fmt::format("{} x{} in {} chunks", model.label, micro_batches, chunks));
        const RewrittenGraph r =
            rewritten(graph, {{}, even_cuts(graph, chunks, graphs, chunks == 3 ? 0.9 : 0)});
        verify(r.graph);
        expect_parted(r);
        EXPECT_EQ(to_text(graph_from_text(to_text(r.graph), ops::find)), to_text(r.graph));
        const Plan plan = plan_for(r.graph, "1", {});
        const double d = distance(train_in_parts(lower(r.graph, plan), r.graph, config), one);
        EXPECT_LE(d, 1e-12);
        worst = std::max(worst, d);
        ++graphs;
      }
    }
  }
  fmt::print("{} cut graphs, the worst differs by {:.1e}\n", graphs, worst);
}

// Between the layers of a residual network one value goes forth and one comes back.
TEST(Cut, BetweenLayersOneValuePasses) {
  const ModelConfig config = config_for(models()[0], 2);  // untied, no dropout
  const Graph graph = step_graph(config, 4);
  const std::vector<Repeat> layers = repeats(graph);
  ASSERT_FALSE(layers.empty());
  const RewrittenGraph r = rewritten(graph, {{}, {layers[0].first + layers[0].period}});
  const Shown shown = transfers_of(r.graph);
  EXPECT_EQ(shown.transfers.at(Phase::kForward), 1);
  EXPECT_EQ(shown.transfers.at(Phase::kBackward), 1);
  EXPECT_EQ(shown.once, 0);
  // The squares of one chunk's gradients, the loss, and what every update reads.
  EXPECT_LE(shown.transfers.at(Phase::kUpdate), 5);
}

// A tied weight goes to its second reader at the start of a step, and that one's part of the
// gradient comes back once, in the update.
TEST(Cut, TiedWeightsAreSentOnceAStep) {
  for (const int64_t micro_batches : {1, 4}) {
    const ModelConfig config = config_for(models()[1], 2);
    const Graph graph = step_graph(config, micro_batches);
    const std::vector<Repeat> layers = repeats(graph);
    ASSERT_FALSE(layers.empty());
    const RewrittenGraph r = rewritten(graph, {{}, {layers[0].first + layers[0].period}});
    const Shown shown = transfers_of(r.graph);
    EXPECT_EQ(shown.once, 1);
    EXPECT_EQ(shown.transfers.at(Phase::kBackward), 1);
    int64_t large = 0;
    for (const Node& n : r.graph.nodes()) {
      large += n.op->transfer && n.phase == Phase::kUpdate &&
               numel(r.graph.type(n.inputs[0]).shape) == config.vocab * config.hidden;
    }
    EXPECT_EQ(large, 1);
    int accumulators = 0;
    for (const Source& s : r.graph.sources())
      accumulators += s.kind == SourceKind::kAccumulator && s.name.find('@') != std::string::npos;
    EXPECT_EQ(accumulators, micro_batches > 1 ? 1 : 0);
  }
}

TEST(Cut, RefusesCutsOutsideTheForward) {
  const Graph graph = step_graph(config_for(models()[0], 2), 1);
  const auto last = static_cast<NodeId>(graph.nodes().size() - 1);
  EXPECT_THROW(cut(graph, {last}), InternalError);
  EXPECT_THROW(cut(graph, {0}), InternalError);
  EXPECT_THROW(cut(graph, {9, 5}), InternalError);
  EXPECT_THROW(cut(graph, {}), InternalError);
}

}  // namespace
}  // namespace cleave
