// Which instructions a GPU is given together.
#include <gtest/gtest.h>

#include <numeric>

#include "executor/instr_batches.h"
#include "executor/memory_layout.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops.h"
#include "tests/executor_builder.h"
#include "tests/training_plans.h"

namespace cleave {
namespace {

using testing::ProgramBuilder;

void launch_many(std::span<const KernelArgs>) {}
int64_t hundred_bytes(const OpCall&) { return 100; }

// `add`, of which many can be launched at once.
OpDef adding(bool workspace) {
  OpDef op = ops::add;
  op.cuda_many = launch_many;
  op.cuda_workspace = workspace ? hundred_bytes : nullptr;
  return op;
}

std::vector<size_t> sizes(const Program& p) {
  std::vector<int32_t> all(p.instrs.size());
  std::iota(all.begin(), all.end(), 0);
  std::vector<size_t> result;
  for (const InstrBatch& b : instr_batches(p, all)) result.push_back(b.instrs.size());
  return result;
}

// Adds pairs of these tensors, in order: "ab>c" makes c of a and b.
Program adds(const OpDef& op, const std::vector<std::string>& instrs) {
  ProgramBuilder b({{"rep", 1}});
  std::map<char, TensorId> known;
  for (char name = 'a'; name < 'e'; ++name) {
    known[name] = b.source(SourceKind::kState, std::string(1, name), {{8}}, {testing::kWhole});
  }
  for (const std::string& text : instrs) {
    const TensorId out = b.tensor(text, {{8}}, {testing::kWhole});
    b.compute(op, "a,a->a", {known.at(text[0]), known.at(text[1])}, {out}, {testing::kNone});
    known[text[3]] = out;
    b.output(text, out);
  }
  Program p = std::move(b.program);
  p.gpu = true;
  plan_memory(p);
  return p;
}

TEST(Batches, TakeWhatNeedsNothingOfEachOther) {
  const OpDef op = adding(false);
  EXPECT_EQ(sizes(adds(op, {"ab>x", "cd>y", "ac>z"})), (std::vector<size_t>{3}));
  EXPECT_EQ(sizes(adds(op, {"ab>x", "xd>y", "ac>z"})), (std::vector<size_t>{1, 2}));
  EXPECT_EQ(sizes(adds(op, {"ab>x", "cd>y", "xy>z"})), (std::vector<size_t>{2, 1}));
  EXPECT_EQ(sizes(adds(ops::add, {"ab>x", "cd>y"})), (std::vector<size_t>{1, 1}));
  EXPECT_EQ(sizes(adds(op, {})), (std::vector<size_t>{}));
}

// The memory of one that was read before, or written.
TEST(Batches, LookAtTheArena) {
  const OpDef op = adding(false);
  for (const auto& [first, second] : {std::pair("ab>x", "cd>y"), std::pair("cd>y", "ab>x")}) {
    Program p = adds(op, {first, second});
    EXPECT_EQ(sizes(p), (std::vector<size_t>{2}));
    const auto buffer = [&](TensorId t) -> Buffer& {
      return p.buffers[static_cast<size_t>(p.tensor(t).buffer)];
    };
    buffer(p.instrs[1].out[0]).offset = buffer(p.instrs[0].out[0]).offset + 16;
    EXPECT_EQ(sizes(p), (std::vector<size_t>{1, 1}));
    buffer(p.instrs[1].out[0]).offset = buffer(p.instrs[0].in[1]).offset + 28;
    EXPECT_EQ(sizes(p), (std::vector<size_t>{1, 1}));
    buffer(p.instrs[1].out[0]).offset = buffer(p.instrs[0].in[1]).offset + 32;  // beside it
    EXPECT_EQ(sizes(p), (std::vector<size_t>{2}));
  }
}

TEST(Batches, HaveWorkspacesOfTheirOwn) {
  const OpDef op = adding(true);
  Program p = adds(op, {"ab>x", "cd>y", "ac>z", "ad>v", "bd>w"});
  p.memory[0].workspace_bytes = 2 * kWorkspaceAlignment;
  EXPECT_EQ(sizes(p), (std::vector<size_t>{2, 2, 1}));
  p.memory[0].workspace_bytes = 100;
  EXPECT_EQ(sizes(p), (std::vector<size_t>{1, 1, 1, 1, 1}));
  p.memory[0].workspace_bytes = 1 << 20;
  std::vector<int32_t> all = {0, 1, 2, 3, 4};
  const std::vector<InstrBatch> found = instr_batches(p, all);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].instrs, all);
  EXPECT_EQ(found[0].workspaces, (std::vector<int64_t>{0, 256, 512, 768, 1024}));
}

// Which may depend on how operands lie, as those of products do: here one of each that does not
// lie dense.
int64_t of_spread(const OpCall& call) {
  int64_t bytes = 1000;  // nobody says how they lie
  if (!call.placed.empty()) bytes = 0;
  for (const TensorView& t : call.placed) bytes += t.contiguous() ? 0 : 300;
  return bytes;
}

TEST(Batches, KnowHowOperandsLie) {
  OpDef op = adding(false);
  op.cuda_workspace = of_spread;
  Program p = adds(op, {"ab>x", "cd>y", "ac>z"});
  EXPECT_EQ(p.memory[0].workspace_bytes, 0);
  EXPECT_EQ(sizes(p), (std::vector<size_t>{3}));
  p.tensor(p.instrs[1].in[0]).geometry.strides = {2};  // c
  p.memory[0].workspace_bytes = largest_workspace(p);
  EXPECT_EQ(p.memory[0].workspace_bytes, 300);
  p.memory[0].workspace_bytes = 1024;
  std::vector<int32_t> all = {0, 1, 2};
  const std::vector<InstrBatch> found = instr_batches(p, all);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].workspaces, (std::vector<int64_t>{0, 0, 512}));
}

#ifdef CLEAVE_CUDA
// The update of a whole model is one batch, and so are the squares for its norm.
TEST(Batches, HaveAllOfAnUpdate) {
  const Graph graph = testing::training_graph(model_named("gpt2:tiny"), DType::kBF16);
  Program p = lower(graph, testing::plan_for(graph, "1", {}), true);
  p.gpu = true;
  plan_memory(p);
  std::vector<int32_t> update;
  int64_t updates = 0;
  for (size_t i = 0; i < p.instrs.size(); ++i) {
    if (p.instrs[i].part != Part::kUpdate) continue;
    update.push_back(static_cast<int32_t>(i));
    updates += p.instrs[i].op == &ops::adamw;
  }
  std::vector<size_t> large;
  for (const InstrBatch& b : instr_batches(p, update)) {
    if (b.instrs.size() > 1) large.push_back(b.instrs.size());
  }
  EXPECT_EQ(large, std::vector<size_t>(2, static_cast<size_t>(updates)));
}

// Queries and keys are turned by one launch, forward and backward.
TEST(Batches, TurnQueriesAndKeysTogether) {
  for (const char* name : {"llama:tiny", "llama:1b", "qwen2.5:1.5b", "mixtral:tiny"}) {
    ModelConfig config = model_named(name);
    config.layers = 3;
    config.batch = 2;
    const Graph graph = testing::training_graph(config, DType::kBF16);
    PlannerOptions options;
    options.mesh = parse_mesh("1");
    const PlanResult found = find_plan(graph, parse_cluster("h100"), options);
    ASSERT_TRUE(found.plan);
    Program p = lower(*found.graph, *found.plan, true);
    p.gpu = true;
    plan_memory(p);
    std::vector<int32_t> all(p.instrs.size());
    std::iota(all.begin(), all.end(), 0);
    int64_t alone = 0, pairs = 0;
    for (const InstrBatch& b : instr_batches(p, all)) {
      if (p.instrs[static_cast<size_t>(b.instrs[0])].op != &ops::rotary) continue;
      alone += b.instrs.size() == 1, pairs += b.instrs.size() == 2;
    }
    EXPECT_EQ(alone, 0) << name;
    EXPECT_EQ(pairs, 2 * config.layers) << name;
  }
}
#endif

}  // namespace
}  // namespace cleave
