// The fusion `chunks`: a head that goes through its rows in chunks trains to the numbers of the
// whole one, in less memory; programs in which something else needs the scores stay as they were.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "executor/fuse.h"
#include "executor/prediction.h"
#include "kernels/ops.h"
#include "planner/remake.h"
#include "tests/arena_watch.h"
#include "tests/training_plans.h"
#include "tracer/functional.h"
#include "tracer/nn.h"

namespace cleave {
namespace {

using testing::plan_for;

// A block between an embedding and a head, with a loss of the scores: what follows the block.
using Tail = std::function<Tensor(const ModelConfig&, const Tensor& x, const Tensor& targets)>;

LossFunction with_tail(Tail tail) {
  return [tail](const ModelConfig& c, const Tensor& tokens, const Tensor& targets) {
    const Embedding embed("embed", c.vocab, c.hidden);
    const Linear up("up", c.hidden, 2 * c.hidden), down("down", 2 * c.hidden, c.hidden);
    const Tensor x = embed(tokens);
    return tail(c, RmsNorm("last", c.hidden)(x + down(relu(up(x)))), targets);
  };
}

Tensor scores_of(const ModelConfig& c, const Tensor& x) {
  return linear(x, Linear("head", c.hidden, c.vocab, false).weight);
}

Tensor plain(const ModelConfig& c, const Tensor& x, const Tensor& targets) {
  return cross_entropy(scores_of(c, x), targets);
}

// Some targets are to be ignored; batch and sequence are one dimension.
Tensor flat_with_ignored(const ModelConfig& c, const Tensor& x, const Tensor& targets) {
  const Tensor rows = x.reshape({c.batch * c.sequence, c.hidden});
  return cross_entropy(scores_of(c, rows), targets.reshape({c.batch * c.sequence}), 3);
}

// Rows become one dimension after the head, as in much PyTorch code.
Tensor flattened(const ModelConfig& c, const Tensor& x, const Tensor& targets) {
  const int64_t rows = c.batch * c.sequence;
  return cross_entropy(scores_of(c, x).reshape({rows, c.vocab}), targets.reshape({rows}));
}

struct Case {
  std::string label;
  ModelConfig config;
  LossFunction loss;  // empty: built in
};

ModelConfig own_config() { return testing::config_for({"", "gpt2:124m", {}}, 1); }

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* name : {"gpt2:tiny", "llama:tiny"}) {  // tied and not
    ModelConfig config = model_named(name);
    for (const char* s : {"layers=2", "hidden=32", "sequence=16", "batch=4", "vocab=48"})
      set_value(config, s);
    all.push_back({std::string(name).substr(0, std::string(name).find(':')), config, {}});
  }
  all.push_back({"ignored", own_config(), with_tail(flat_with_ignored)});
  all.push_back({"flattened", own_config(), with_tail(flattened)});
  return all;
}

Graph graph_of(const Case& c, DType dtype, int64_t micro_batches = 1, bool training = true) {
  TraceOptions options;
  options.dtype = dtype;
  options.training = training;
  options.optimizer.lr = 3e-3;
  options.optimizer.micro_batches = micro_batches;
  return c.loss ? trace("own", c.config, c.loss, options) : trace(c.config, options);
}

int64_t scores_bytes(const ModelConfig& c, DType dtype) {
  return c.batch * c.sequence * c.vocab * size_of(dtype);
}

// In so many chunks.
FuseOptions in_chunks(const ModelConfig& c, DType dtype, int64_t chunks) {
  FuseOptions options(true);
  options.logits_bytes = scores_bytes(c, dtype) / chunks;
  return options;
}

int made(const Program& program) {
  for (size_t f = 0; f < fusions().size(); ++f) {
    if (fusions()[f].name == "chunks") return program.fusions[f];
  }
  return -1;
}

int64_t count(const Program& program, const OpDef& op) {
  return std::count_if(program.instrs.begin(), program.instrs.end(),
                       [&](const Instr& i) { return i.op == &op; });
}

// The largest tensor along the classes that an instruction makes, in bytes.
int64_t largest_scores(const Program& program) {
  int64_t most = 0;
  for (const Instr& i : program.instrs) {
    if (i.op != &ops::cross_entropy && i.op != &ops::cross_entropy_backward &&
        i.op != &ops::cross_entropy_both) {
      continue;
    }
    const ProgramTensor& t = program.tensor(i.in[0]);
    most = std::max(most, numel(t.geometry.shape) * size_of(t.dtype));
  }
  return most;
}

struct Trained {
  std::vector<double> losses, parameters;
};

template <class T>
void append(std::vector<double>& to, const std::vector<std::byte>& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  to.insert(to.end(), values.begin(), values.end());
}

Trained train(Program program, const ModelConfig& config) {
  constexpr int kSteps = 5;
  const int64_t micro_batches = program.micro_batches();
  CpuRuntime runtime(std::move(program), {.seed = 42});
  runtime.initialize();
  Trained result;
  for (int step = 0; step < kSteps; ++step) {
    for (int64_t m = 0; m < micro_batches; ++m) {
      testing::feed(runtime, config, micro_batches * step + m);
      if (m + 1 < micro_batches) runtime.accumulate();
    }
    result.losses.push_back(runtime.step().value("loss"));
  }
  for (const ProgramSource& s : runtime.program().sources) {
    if (s.kind != SourceKind::kParameter) continue;
    std::vector<std::byte> bytes;
    runtime.read_source(s.name, bytes);
    const bool wide = runtime.source_type(s.name).dtype == DType::kF64;
    wide ? append<double>(result.parameters, bytes) : append<float>(result.parameters, bytes);
  }
  return result;
}

void expect_near(const Trained& got, const Trained& want, double bound) {
  ASSERT_EQ(got.losses.size(), want.losses.size());
  ASSERT_EQ(got.parameters.size(), want.parameters.size());
  double loss = 0, parameter = 0;
  for (size_t i = 0; i < want.losses.size(); ++i)
    loss = std::max(loss, std::abs(got.losses[i] / want.losses[i] - 1));
  for (size_t i = 0; i < want.parameters.size(); ++i)
    parameter = std::max(parameter, std::abs(got.parameters[i] - want.parameters[i]));
  EXPECT_LE(loss, bound);
  EXPECT_LE(parameter, bound);
  EXPECT_LT(want.losses.back(), want.losses.front());
  fmt::print("losses differ by {:.1e}, parameters by {:.1e}\n", loss, parameter);
}

// --- What is made --------------------------------------------------------------------------------

class Chunks : public ::testing::TestWithParam<size_t> {
 protected:
  const Case own_ = cases()[GetParam()];
};

TEST_P(Chunks, TrainLikeTheWhole) {
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    for (const int64_t micro_batches : {1, 2}) {
      const Graph graph = graph_of(own_, dtype, micro_batches);
      const Plan plan = plan_for(graph, "1", {});
      const Program whole = lower(graph, plan, true);
      EXPECT_EQ(made(whole), 0);
      const Trained want = train(whole, own_.config);
      for (const int64_t chunks : {2, 4}) {
        SCOPED_TRACE(
            fmt::format("{} of {}, {} micro-batches", chunks, name_of(dtype), micro_batches));
        const Program program = lower(graph, plan, in_chunks(own_.config, dtype, chunks));
        EXPECT_EQ(made(program), chunks);
        EXPECT_EQ(count(program, ops::cross_entropy_both), chunks);
        EXPECT_EQ(largest_scores(program), scores_bytes(own_.config, dtype) / chunks);
        expect_near(train(program, own_.config), want, dtype == DType::kF64 ? 1e-12 : 2e-6);
      }
    }
  }
}

// Every family, with what else it does: losses of routers beside, dropout, biases. A bias of the
// head stands between the scores and their loss.
TEST(ChunksOfEveryModel, TrainLikeTheWhole) {
  for (const testing::Model& model : testing::models()) {
    SCOPED_TRACE(model.label);
    const ModelConfig config = testing::config_for(model, 1);
    const Graph graph = testing::training_graph(config, DType::kF64, model.optimizer);
    const Plan plan = plan_for(graph, "1", {});
    const Program program = lower(graph, plan, in_chunks(config, DType::kF64, 4));
    EXPECT_EQ(made(program), std::string_view(model.name).starts_with("bert") ? 0 : 4);
    const testing::Curve whole = testing::run(lower(graph, plan), config);
    EXPECT_LT(testing::distance(testing::run(program, config), whole), 1e-10);
  }
}

// What the backward computes again of the head is computed once, and so are its losses. In types of
// 16 bits, which do not run here, lower() checks the program.
TEST_P(Chunks, OfWhatIsComputedAgain) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16}) {
    const Graph traced = graph_of(own_, dtype);
    const std::vector<bool> can = can_be_remade(traced);
    Rewrite all, head;
    for (NodeId n = 0; n < static_cast<NodeId>(can.size()); ++n) {
      if (can[static_cast<size_t>(n)]) all.remade.push_back(n);
      if (traced.node(n).op != &ops::cross_entropy) continue;
      head.remade.push_back(traced.value(traced.node(n).inputs[0]).producer);
    }
    ASSERT_EQ(head.remade.size(), 1u);
    const Trained want =
        is_half(dtype) ? Trained{} : train(lower(traced, plan_for(traced, "1", {})), own_.config);
    for (const Rewrite& rewrite : {head, all}) {
      const Graph graph = rewritten(traced, rewrite).graph;
      const Plan plan = plan_for(graph, "1", {});
      const Program program = lower(graph, plan, in_chunks(own_.config, dtype, 4));
      EXPECT_EQ(made(program), 4);
      EXPECT_EQ(count(program, ops::cross_entropy_both), 4);
      EXPECT_EQ(largest_scores(program), scores_bytes(own_.config, dtype) / 4);
      if (is_half(dtype)) continue;
      expect_near(train(program, own_.config), want, dtype == DType::kF64 ? 1e-12 : 2e-6);
    }
  }
}

TEST_P(Chunks, AreSoundInHalves) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t micro_batches : {1, 2}) {
      const Graph graph = graph_of(own_, dtype, micro_batches);
      const Plan plan = plan_for(graph, "1", {});
      for (const int64_t chunks : {2, 4}) {
        const Program program = lower(graph, plan, in_chunks(own_.config, dtype, chunks));
        EXPECT_EQ(made(program), chunks) << name_of(dtype);
        EXPECT_EQ(largest_scores(program), scores_bytes(own_.config, dtype) / chunks);
      }
    }
  }
}

// dscores lie in the place of the scores, what chunks make of dx in dx, and the gradient of the
// weights that is not whole yet where the whole one will.
TEST_P(Chunks, CopyNothing) {
  const Graph graph = graph_of(own_, DType::kF32, 2);
  const Plan plan = plan_for(graph, "1", {});
  const Program whole = lower(graph, plan, true),
                program = lower(graph, plan, in_chunks(own_.config, DType::kF32, 4));
  int64_t sums = 0;
  for (const Instr& i : program.instrs) {
    const auto buffer = [&](TensorId t) { return program.tensor(t).buffer; };
    const bool moves = i.op == &ops::reshape || i.op == &ops::slice || i.op == &ops::concat;
    if (moves || i.op == &ops::cross_entropy_both) {
      EXPECT_EQ(buffer(i.in[0]), buffer(i.out.back()));
    }
    if (i.op != &ops::linear || !i.attrs.has("residual") || i.signature->output_text(0) != "nk" ||
        program.tensor(i.out[0]).geometry.shape[0] != own_.config.vocab) {
      continue;
    }
    ++sums;
    EXPECT_EQ(buffer(i.in.back()), buffer(i.out[0]));
  }
  EXPECT_GE(sums, 3);
  EXPECT_EQ(count(program, ops::copy), count(whole, ops::copy));
}

INSTANTIATE_TEST_SUITE_P(Models, Chunks, ::testing::Range(size_t{0}, cases().size()),
                         [](const auto& info) { return cases()[info.param].label; });

// --- Memory and time -----------------------------------------------------------------------------

// The scores, and what is made of them, are a chunk's: twice those of all rows are live at once
// otherwise, or, with tied weights, once until the backward ends.
TEST(ChunksOfALargeHead, TakeLessMemoryAndAboutAsLong) {
  for (const char* name : {"gpt2:124m", "llama:1b"}) {
    SCOPED_TRACE(name);
    ModelConfig config = model_named(name);
    config.batch = std::string_view(name) == "llama:1b" ? 8 : 32;
    config.sequence = std::string_view(name) == "llama:1b" ? 2048 : 1024;
    TraceOptions options;
    options.dtype = DType::kBF16;
    const Graph graph = trace(config, options);
    PlannerOptions one;
    one.mesh = parse_mesh("1");
    const Plan plan = *find_plan(graph, parse_cluster("h100"), one).plan;
    const Program chunks = lower_unplaced(graph, plan),
                  whole = lower_unplaced(graph, plan, {"chunks"});
    const int64_t scores = scores_bytes(config, DType::kBF16);
    EXPECT_EQ(made(chunks), 2);
    EXPECT_LE(largest_scores(chunks), kLogitsBytes);
    EXPECT_EQ(largest_scores(whole), scores);
    EXPECT_LT(program_peak_bytes(chunks)[0], program_peak_bytes(whole)[0] - scores);
    const auto seconds = [&](const Program& p) {
      const RunSeconds s = run_seconds(graph, p, plan.cluster);
      return std::accumulate(s.phases.begin(), s.phases.end(), 0.0);
    };
    EXPECT_NEAR(seconds(chunks), seconds(whole), 0.02 * seconds(whole));
  }
}

// Where the head is nearly all there is, memory falls by what its buffers say, and the runtime
// takes what was predicted.
TEST(ChunksOfALargeHead, TakeWhatIsPredicted) {
  ModelConfig config = own_config();
  config.vocab = 4096;
  const Graph graph = graph_of({"", config, with_tail(plain)}, DType::kF32);
  const Plan plan = plan_for(graph, "1", {});
  const int64_t scores = scores_bytes(config, DType::kF32);
  const int64_t whole = lower(graph, plan, true).arena_bytes;
  for (const int64_t chunks : {2, 4, 8}) {
    const Program program = lower(graph, plan, in_chunks(config, DType::kF32, chunks));
    EXPECT_NEAR(whole - program.arena_bytes, scores - scores / chunks, 0.1 * scores);
    CpuRuntime runtime(program, {.seed = 1});
    runtime.initialize();
    testing::feed(runtime, config, 0);
    runtime.step();
    const std::vector<testing::ArenaUse> now = testing::arenas_in_use();  // the host's is empty
    ASSERT_EQ(now.size(), 2u);
    EXPECT_EQ(now.back().bytes, program.arena_bytes);
  }
}

// --- What is left as it is -----------------------------------------------------------------------

// Its instructions and results; not how large it is, and what was made of it.
std::string instructions(const Program& program) {
  const std::string text = to_text(program);
  return text.substr(text.find("\ndata "));
}

void expect_left(const Graph& graph, const FuseOptions& options) {
  const Plan plan = plan_for(graph, "1", {});
  FuseOptions off = options;
  off.off.emplace_back("chunks");
  const Program program = lower(graph, plan, options);
  EXPECT_EQ(made(program), 0);
  EXPECT_TRUE(instructions(program) == instructions(lower(graph, plan, off)));
}

TEST(ChunksLeave, WhatElseReadsScoresOrNeedsTheLossFirst) {
  const std::vector<std::pair<std::string, Tail>> tails = {
      {"the loss of the scores' size",
       [](const ModelConfig& c, const Tensor& x, const Tensor& targets) {
         const Tensor s = scores_of(c, x);
         return cross_entropy(s, targets) + 1e-3 * mean(square(logsumexp(s, {-1})));
       }},
      {"two losses",
       [](const ModelConfig& c, const Tensor& x, const Tensor& targets) {
         const Tensor s = scores_of(c, x);
         return cross_entropy(s, targets) + 0.5 * cross_entropy(s, targets, 3);
       }},
      {"a gradient that depends on the loss",
       [](const ModelConfig& c, const Tensor& x, const Tensor& targets) {
         return square(plain(c, x, targets));
       }},
      {"scores that are capped",
       [](const ModelConfig& c, const Tensor& x, const Tensor& targets) {
         return cross_entropy(5.0 * tanh(scores_of(c, x) / 5.0), targets);
       }},
  };
  for (const auto& [what, tail] : tails) {
    SCOPED_TRACE(what);
    const ModelConfig config = own_config();
    expect_left(graph_of({"", config, with_tail(tail)}, DType::kF64),
                in_chunks(config, DType::kF64, 4));
  }
}

TEST(ChunksLeave, WhatIsWithinTheLimitOrDoesNotDivide) {
  ModelConfig config = own_config();
  const LossFunction loss = with_tail(plain);
  expect_left(graph_of({"", config, loss}, DType::kF32), in_chunks(config, DType::kF32, 1));
  config.batch = 1, config.sequence = 31;
  expect_left(graph_of({"", config, loss}, DType::kF32), in_chunks(config, DType::kF32, 4));
  config.sequence = 30;  // by 5 instead
  const Graph graph = graph_of({"", config, loss}, DType::kF32);
  EXPECT_EQ(made(lower(graph, plan_for(graph, "1", {}), in_chunks(config, DType::kF32, 4))), 5);
}

// Of a head that is left whole, too, dscores take the scores' place: when nobody reads scores
// later.
TEST(ChunksLeave, GradientsWhereScoresWere) {
  const ModelConfig config = own_config();
  for (const bool twice : {false, true}) {
    const Graph graph = graph_of({"", config, with_tail([&](auto& c, auto& x, auto& targets) {
                                    const Tensor s = scores_of(c, x);
                                    const Tensor loss = cross_entropy(s, targets);
                                    return twice ? loss + 0.5 * cross_entropy(s, targets, 3) : loss;
                                  })},
                                 DType::kF32);
    const Plan plan = plan_for(graph, "1", {});
    for (const bool off : {false, true}) {
      const Program program =
          off ? lower(graph, plan, {true, {"chunks"}}) : lower(graph, plan, true);
      int64_t in_place = 0;
      for (const Instr& i : program.instrs) {
        if (i.op != &ops::cross_entropy_backward && i.op != &ops::cross_entropy_both) continue;
        in_place += program.tensor(i.in[0]).buffer == program.tensor(i.out.back()).buffer ? 1 : 0;
      }
      EXPECT_EQ(in_place, off ? 0 : 1);
    }
  }
}

TEST(ChunksLeave, AForwardAlone) {
  const ModelConfig config = own_config();
  expect_left(graph_of({"", config, with_tail(plain)}, DType::kF32, 1, false),
              in_chunks(config, DType::kF32, 4));
}

// Other linear layers may be: their products, and only theirs, are the same with chunks.
TEST(ChunksLeave, AHeadIn8Bits) {
  const Case own = cases()[1];
  const Graph graph = graph_of(own, DType::kF32);
  for (const bool last : {false, true}) {
    FuseOptions options = in_chunks(own.config, DType::kF32, 4);
    options.f8.scaling = F8Scaling::kCurrent;
    options.f8.last = last;
    expect_left(graph, options);
  }
}

}  // namespace
}  // namespace cleave
