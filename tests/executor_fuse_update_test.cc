// The update's fusions: the copies of parameters that it keeps from step to step, and gradients
// that it reads as they were made.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "executor/run_state.h"
#include "kernels/ops.h"
#include "tests/training_plans.h"
#include "tests/widened_program.h"

namespace cleave {
namespace {

using testing::widened;
using Kind = OptimizerOptions::Kind;

struct Setting {
  const char* model;
  Kind optimizer;
  int64_t micro_batches;
  std::optional<DType> moments = {};
};

Graph graph_of(const Setting& s) {
  TraceOptions options;
  options.dtype = DType::kBF16;
  options.optimizer = {.kind = s.optimizer,
                       .lr = 3e-3,
                       .min_lr = 3e-4,
                       .warmup = 2,
                       .total_steps = 8,
                       .moments = s.moments,
                       .micro_batches = s.micro_batches};
  return trace(model_named(s.model), options);
}

Program lowered(const Setting& s, std::vector<std::string> names) {
  const Graph graph = graph_of(s);
  std::vector<std::string> off = fusions_in("all");
  for (const std::string& name : names) std::erase(off, name);
  return lower(graph, testing::plan_for(graph, "1", {}), {true, off});
}

int64_t count(const Program& p, const OpDef& op, Part part) {
  return std::count_if(p.instrs.begin(), p.instrs.end(),
                       [&](const Instr& i) { return i.op == &op && i.part == part; });
}

int64_t parameters(const Program& p) {
  return std::count_if(p.sources.begin(), p.sources.end(),
                       [](const ProgramSource& s) { return s.kind == SourceKind::kParameter; });
}

// Four steps; before the third, a parameter is set from outside.
std::vector<double> losses(Program program, const Setting& s) {
  const ModelConfig config = model_named(s.model);
  std::string parameter;
  for (const ProgramSource& source : program.sources) {
    if (source.kind == SourceKind::kParameter) parameter = source.name;
  }
  CpuRuntime runtime(std::move(program), {.seed = 42});
  runtime.initialize();
  std::vector<double> found;
  for (int step = 0; step < 4; ++step) {
    if (step == 2) {
      std::vector<std::byte> whole = runtime.read_source(parameter);
      const double half = 0.5;
      std::memcpy(whole.data(), &half, sizeof half);
      runtime.write_source(parameter, whole);
    }
    for (int64_t m = 0; m < s.micro_batches; ++m) {
      testing::feed(runtime, config, step * s.micro_batches + m);
      if (m + 1 < s.micro_batches) runtime.accumulate();
    }
    const StepResult r = runtime.step();
    found.push_back(r.value("loss"));
    found.push_back(r.value("grad_norm"));
  }
  return found;
}

class UpdateFusions : public ::testing::TestWithParam<Setting> {};

// To the bit: casts are made elsewhere, sums in the same order.
TEST_P(UpdateFusions, TrainToTheSameBits) {
  const Setting& s = GetParam();
  const std::vector<double> want = losses(widened(lowered(s, {})), s);
  EXPECT_EQ(losses(widened(lowered(s, {"copies"})), s), want);
  EXPECT_EQ(losses(widened(lowered(s, {"gradients"})), s), want);
  EXPECT_EQ(losses(widened(lowered(s, {"copies", "gradients"})), s), want);
}

// A runtime that makes no cast finds in each copy what a cast would make of the parameter.
void expect_copies_of_casts(Program program, const Setting& s) {
  const ModelConfig config = model_named(s.model);
  std::vector<std::string> parameters;
  for (const KeptTensor& k : program.kept) {
    const auto cast = std::find_if(program.instrs.begin(), program.instrs.end(),
                                   [&](const Instr& i) { return i.out[0] == k.tensor; });
    const auto source =
        std::find_if(program.sources.begin(), program.sources.end(),
                     [&](const ProgramSource& x) { return x.tensor == cast->in[0]; });
    parameters.push_back(source->name);
    program.outputs.push_back({"copy of " + source->name, k.final});
  }
  CpuRuntime runtime(std::move(program), {.seed = 42});
  runtime.initialize();
  for (int step = 0; step < 2; ++step) {
    for (int64_t m = 0; m < s.micro_batches; ++m) {
      testing::feed(runtime, config, step * s.micro_batches + m);
      if (m + 1 < s.micro_batches) runtime.accumulate();
    }
    const StepResult r = runtime.step();
    size_t compared = 0;
    for (const StepOutput& o : r.outputs) {
      if (o.name.rfind("copy of ", 0) != 0) continue;
      const std::vector<std::byte> whole = runtime.read_source(o.name.substr(8));
      std::vector<double> want(whole.size() / sizeof(double));
      std::memcpy(want.data(), whole.data(), whole.size());
      for (double& x : want) x = static_cast<double>(static_cast<float>(x));
      EXPECT_EQ(o.values, want) << o.name;
      ++compared;
    }
    EXPECT_EQ(compared, parameters.size());
  }
}

TEST_P(UpdateFusions, KeepWhatACastWouldMake) {
  const Setting& s = GetParam();
  expect_copies_of_casts(widened(lowered(s, {"copies"})), s);
  // Side by side, too.
  expect_copies_of_casts(widened(lowered(s, {"copies", "siblings"})), s);
}

TEST_P(UpdateFusions, LeaveNoCastBehind) {
  const Setting& s = GetParam();
  const Program p = lowered(s, {"copies", "gradients"}), bare = lowered(s, {});
  EXPECT_EQ(static_cast<int64_t>(p.kept.size()), parameters(p));
  EXPECT_EQ(p.fusions[0], parameters(p));
  EXPECT_EQ(count(p, ops::cast, Part::kBegin), parameters(p));
  EXPECT_EQ(count(p, ops::cast, Part::kForward) + parameters(p),
            count(bare, ops::cast, Part::kForward) + count(bare, ops::cast, Part::kBegin));
  // Several micro-batches add gradients up in f32.
  EXPECT_EQ(p.fusions[1], s.micro_batches > 1 ? 0 : parameters(p));
  EXPECT_EQ(count(p, ops::cast, Part::kBackward) + p.fusions[1],
            count(bare, ops::cast, Part::kBackward));
  EXPECT_NE(to_text(p).find("\nkept "), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Programs, UpdateFusions,
                         ::testing::Values(Setting{"gpt2:tiny", Kind::kAdamW, 1},
                                           Setting{"llama:tiny", Kind::kSgd, 1},
                                           Setting{"gpt2:tiny", Kind::kAdamW, 2},
                                           Setting{"gpt2:tiny", Kind::kAdamW, 1, DType::kBF16},
                                           Setting{"llama:tiny", Kind::kSgd, 1, DType::kBF16}),
                         [](const auto& info) {
                           const Setting& s = info.param;
                           const std::string name = s.model;
                           return name.substr(0, name.find(':')) +
                                  (s.optimizer == Kind::kSgd ? "Sgd" : "AdamW") +
                                  std::to_string(s.micro_batches) + (s.moments ? "Halves" : "");
                         });

// --- Parameters in two ---------------------------------------------------------------------------

int made(const Program& p, std::string_view fusion) {
  for (size_t f = 0; f < fusions().size(); ++f) {
    if (fusions()[f].name == fusion) return p.fusions[f];
  }
  return -1;
}

// Of what is kept from step to step.
int64_t kept_bytes(const Program& p) {
  int64_t bytes = 0;
  for (const Buffer& b : p.buffers) bytes += b.persistent ? b.bytes : 0;
  return bytes;
}

int64_t parameter_elements(const Program& p) {
  int64_t n = 0;
  for (const ProgramSource& s : p.sources) {
    if (s.kind == SourceKind::kParameter && !s.is_rest)
      n += numel(p.tensor(s.tensor).geometry.shape);
  }
  return n;
}

// That the rewrite leaves the program as it was, but for where the parameters' bits lie: the
// processor runs it with whole parameters again.
TEST_P(UpdateFusions, RestsTrainToTheSameBits) {
  const Setting& s = GetParam();
  EXPECT_EQ(losses(widened(lowered(s, {"copies", "rest"})), s),
            losses(widened(lowered(s, {"copies"})), s));
  EXPECT_EQ(losses(widened(lowered(s, {"copies", "rest", "siblings"})), s),
            losses(widened(lowered(s, {"copies", "siblings"})), s));
}

TEST_P(UpdateFusions, RestsSaveTheCopies) {
  const Setting& s = GetParam();
  const Program p = lowered(s, {"copies", "gradients", "rest"});
  const Program copies = lowered(s, {"copies", "gradients"}), bare = lowered(s, {});
  EXPECT_EQ(made(p, "rest"), parameters(bare));
  EXPECT_TRUE(p.kept.empty());
  EXPECT_EQ(count(p, ops::cast, Part::kBegin), 0);
  EXPECT_EQ(kept_bytes(p), kept_bytes(bare));
  EXPECT_EQ(kept_bytes(copies), kept_bytes(bare) + 2 * parameter_elements(bare));
  for (const ProgramSource& source : p.sources) {
    if (source.kind != SourceKind::kParameter) continue;
    EXPECT_EQ(source.narrow, !source.is_rest);
    if (source.is_rest) continue;
    EXPECT_EQ(p.tensor(source.tensor).dtype, DType::kBF16);
    const ProgramSource& rest = p.sources[static_cast<size_t>(source.rest)];
    EXPECT_TRUE(rest.is_rest);
    EXPECT_EQ(p.tensor(rest.tensor).dtype, DType::kI16);
    EXPECT_EQ(outer_type(p, source).dtype, DType::kF32);
  }
  const auto marked = [](const Instr& i) {
    return fusions_text(i).find("rest") != std::string::npos;
  };
  EXPECT_EQ(std::count_if(p.instrs.begin(), p.instrs.end(), marked), parameters(bare));
}

// From outside, parameters are the f32s that they are without the fusion.
TEST(Rests, AreNotSeenFromOutside) {
  const Setting s = {"gpt2:tiny", Kind::kAdamW, 1};
  CpuRuntime two(lowered(s, {"copies", "rest", "siblings"}), {.seed = 42});
  CpuRuntime one(lowered(s, {}), {.seed = 42});
  two.initialize();
  one.initialize();
  size_t compared = 0;
  for (const ProgramSource& source : one.program().sources) {
    if (source.kind == SourceKind::kData) continue;
    EXPECT_EQ(two.source_type(source.name), one.source_type(source.name)) << source.name;
    EXPECT_EQ(two.read_source(source.name), one.read_source(source.name)) << source.name;
    std::vector<std::byte> other = one.read_source(source.name);
    for (size_t i = 0; i < other.size(); ++i) {
      if (i % 4 != 3) other[i] = static_cast<std::byte>(i * 37 + compared);  // of any f32, no NaN
    }
    two.write_source(source.name, other);
    EXPECT_EQ(two.read_source(source.name), other) << source.name;
    ++compared;
  }
  EXPECT_GT(compared, 40u);
  const std::vector<std::byte> few(6);
  EXPECT_THROW(two.write_source("wte.weight", few), Error);
  EXPECT_THROW(two.read_source("wte.weight (rest)"), InternalError);
  const Snapshot of_two = snapshot_of(two, {}), of_one = snapshot_of(one, {});
  ASSERT_EQ(of_two.tensors.size(), of_one.tensors.size());
  for (size_t i = 0; i < of_one.tensors.size(); ++i) {
    EXPECT_EQ(of_two.tensors[i].name, of_one.tensors[i].name);
    EXPECT_EQ(of_two.tensors[i].type, of_one.tensors[i].type);
  }
}

// A program beside a training one reads parameters as that keeps them, and no others.
TEST(Rests, AreKeptByTheTrainingProgramAlone) {
  const Setting s = {"llama:tiny", Kind::kAdamW, 1};
  TraceOptions options;
  options.dtype = DType::kBF16;
  options.training = false;
  const Graph graph = trace(model_named(s.model), options);
  const Plan plan = testing::plan_for(graph, "1", {});
  const auto beside = [&](const Program* trained) {
    FuseOptions fusing(true);
    fusing.trained = trained;
    return lower(graph, plan, fusing);
  };
  const Program whole = lowered(s, {"copies"}), two = lowered(s, {"copies", "rest"});
  for (const Program* trained : {static_cast<const Program*>(nullptr), &whole, &two}) {
    const Program p = beside(trained);
    const bool narrow = trained == &two;
    int64_t seen = 0;
    for (const ProgramSource& source : p.sources) {
      if (source.kind != SourceKind::kParameter) continue;
      ++seen;
      EXPECT_EQ(source.narrow, narrow) << source.name;
      EXPECT_EQ(source.rest, -1);
      EXPECT_EQ(p.tensor(source.tensor).dtype, narrow ? DType::kBF16 : DType::kF32);
      EXPECT_EQ(outer_type(p, source).dtype, DType::kF32);
    }
    EXPECT_EQ(seen, parameters(whole));
  }
  CpuRuntime runtime(beside(&two), {.seed = 1});
  runtime.write_source(
      "norm.weight", std::vector<std::byte>(
                         static_cast<size_t>(numel(runtime.source_type("norm.weight").shape)) * 4));
  EXPECT_THROW(runtime.read_source("norm.weight"), Error);
}

// Whether all that the program keeps lies in the other one's memory as it lies here.
void expect_in_memory_of(const Program& p, const Program& trained) {
  std::map<int32_t, std::pair<int32_t, int64_t>> base;  // by buffer: one there, and bytes in it
  for (const ProgramSource& s : p.sources) {
    if (s.kind == SourceKind::kData) continue;
    const auto same = std::find_if(trained.sources.begin(), trained.sources.end(),
                                   [&](const ProgramSource& t) { return t.name == s.name; });
    ASSERT_NE(same, trained.sources.end()) << s.name;
    const ProgramTensor &here = p.tensor(s.tensor), &there = trained.tensor(same->tensor);
    ASSERT_EQ(here.dtype, there.dtype) << s.name;
    ASSERT_EQ(here.geometry.strides, there.geometry.strides) << s.name;
    const std::pair begin(there.buffer,
                          (there.geometry.offset - here.geometry.offset) * size_of(there.dtype));
    ASSERT_EQ(base.emplace(here.buffer, begin).first->second, begin) << s.name;
  }
  EXPECT_FALSE(base.empty());
}

// Also where training did not put weights side by side, and the other program could.
TEST(Rests, EvaluationsFindParametersAsTheyLie) {
  for (const char* model :
       {"gpt2:tiny", "llama:tiny", "qwen2.5:tiny", "mixtral:tiny", "deepseek:tiny", "mlp:tiny"}) {
    SCOPED_TRACE(model);
    const ModelConfig config = model_named(model);
    const Graph training = testing::training_graph(config, DType::kBF16);
    const Graph loss = trace(config, {DType::kBF16, false, {}});
    const Plan plan = testing::plan_for(training, "1", {}),
               alone = testing::plan_for(loss, "1", {});
    for (const std::vector<std::string>& off :
         {std::vector<std::string>{}, {"siblings"}, {"rest"}, {"copies"}}) {
      const Program trained = lower(training, plan, {true, off});
      FuseOptions fusing(true);
      fusing.trained = &trained;
      expect_in_memory_of(lower(loss, alone, fusing), trained);
    }
  }
}

// What reads a parameter in full, and copies of another type, keep it whole.
TEST(Rests, AreOfParametersThatAreReadAsBf16Alone) {
  const Setting s = {"gpt2:tiny", Kind::kAdamW, 1};
  TraceOptions options;
  options.dtype = DType::kF16;
  options.optimizer = {.kind = s.optimizer, .lr = 1e-3};
  const Graph halves = trace(model_named(s.model), options);
  const Program f16 = lower(halves, testing::plan_for(halves, "1", {}), {true, {}});
  EXPECT_EQ(made(f16, "rest"), 0);
  EXPECT_GT(made(f16, "copies"), 0);
  FuseOptions floats8(true);
  floats8.f8.scaling = F8Scaling::kCurrent;
  const Graph graph = graph_of(s);
  EXPECT_EQ(made(lower(graph, testing::plan_for(graph, "1", {}), floats8), "rest"), 0);
}

// --- The check -----------------------------------------------------------------------------------

void expect_refused(const Program& p, const std::string& why) {
  try {
    check(p);
    FAIL() << "not refused: " << why;
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find(why), std::string::npos) << e.what();
  }
}

TEST(CheckOfKept, RefusesWhatDoesNotLast) {
  const Program good = lowered({"gpt2:tiny", Kind::kAdamW, 1}, {"copies"});
  check(good);
  const auto buffer = [](Program& p) -> Buffer& {
    return p.buffers[static_cast<size_t>(p.tensor(p.kept[0].tensor).buffer)];
  };
  Program p = good;
  buffer(p).persistent = false;
  expect_refused(p, "must be persistent");
  p = good;
  std::swap(p.kept[0].final, p.kept[1].final);
  expect_refused(p, "not where and as it began");
  p = good;
  std::swap(p.kept[0].tensor, p.kept[0].final);
  expect_refused(p, "not made by itself when the step begins");
  p = good;
  for (ProgramSource& s : p.sources) {
    if (s.tensor == p.instrs[0].in[0]) s.final = s.tensor;
  }
  expect_refused(p, "does not make the final value");
}

}  // namespace
}  // namespace cleave
