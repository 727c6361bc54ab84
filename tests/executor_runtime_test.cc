// Programs written by hand, run on threads: any mesh gives what one device gives.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>

#include "executor/cpu_runtime.h"
#include "executor/initial_state.h"
#include "graph/philox.h"
#include "kernels/ops.h"
#include "tests/executor_builder.h"

namespace cleave {
namespace {

using namespace testing;  // NOLINT
using enum InstrKind;

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& v) {
  return std::as_bytes(std::span<const T>(v));
}

template <class T>
std::vector<T> numbers_of(const std::vector<std::byte>& bytes) {
  std::vector<T> v(bytes.size() / sizeof(T));
  std::memcpy(v.data(), bytes.data(), bytes.size());
  return v;
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

std::vector<double> ramp(size_t n) {
  std::vector<double> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = std::sin(static_cast<double>(i));
  return v;
}

constexpr Init kNormal = {Init::Kind::kNormal, 0.5};

// y = relu(x w1') w2', and a count of the steps. w2 shrinks after every step, in place. `rows` and
// `columns`: over how many ranks the batch, and the inner width, are split.
Program mlp(int64_t rows, int64_t columns) {
  ProgramBuilder b({{"r", rows}, {"c", columns}});
  const DType f64 = DType::kF64;
  const TensorId x = b.source(SourceKind::kData, "x", {{8}, {6}}, {cut(0), kWhole}, f64);
  const TensorId w1 =
      b.source(SourceKind::kParameter, "w1", {{12}, {6}}, {kWhole, cut(0)}, f64, kNormal);
  const TensorId w2 =
      b.source(SourceKind::kParameter, "w2", {{5}, {12}}, {kWhole, cut(1)}, f64, kNormal);
  const TensorId count =
      b.source(SourceKind::kState, "count", {}, {kWhole, kWhole}, DType::kI32, {.a = 3});
  const TensorId h = b.tensor("h", {{8}, {12}}, {cut(0), cut(1)}, f64);
  b.compute(ops::matmul, "bk,nk->bn", {x, w1}, {h}, {by('b'), by('n')});
  const TensorId r = b.over("r", h);
  b.compute(ops::relu, "bn->bn", {h}, {r}, {by('b'), by('n')});
  const TensorId part = b.tensor("part", {{8}, {5}}, {cut(0), kPart}, f64);
  b.compute(ops::matmul, "bk,nk->bn", {r, w2}, {part}, {by('b'), by('k')});
  const TensorId y = b.over("y", part);
  b.placement("y", 1) = kWhole;
  b.move(kAllReduce, 1, {part}, {y});
  const TensorId all = b.tensor("all", {{8}, {5}}, {kWhole, kWhole}, f64);
  b.move(kAllGather, 0, {y}, {all});
  const TensorId sum = b.tensor("sum", {}, {kWhole, kWhole}, f64);
  b.compute(ops::sum, "bn->", {all}, {sum}, {kNone, kNone});
  const TensorId w2_next = b.over("w2_next", w2);
  b.compute(ops::scale, "nk->nk", {w2}, {w2_next}, {kNone, by('k')}, {{"value", 0.5}});
  b.source_named("w2").final = w2_next;
  const TensorId counted = b.over("counted", count);
  b.compute(ops::increment, "->", {count}, {counted}, {kNone, kNone});
  b.source_named("count").final = counted;
  b.output("y", all);
  b.output("sum", sum);
  return b.program;
}

// The same by plain loops.
std::vector<double> plain_mlp(const std::vector<double>& x, uint64_t seed, double shrunk) {
  std::vector<double> y(8 * 5, 0);
  for (int64_t b = 0; b < 8; ++b) {
    for (int64_t f = 0; f < 12; ++f) {
      double h = 0;
      for (int64_t k = 0; k < 6; ++k) {
        h += x[static_cast<size_t>(b * 6 + k)] * initial_value(kNormal, seed, "w1", f * 6 + k);
      }
      for (int64_t n = 0; n < 5; ++n) {
        y[static_cast<size_t>(b * 5 + n)] +=
            std::max(h, 0.0) * shrunk * initial_value(kNormal, seed, "w2", n * 12 + f);
      }
    }
  }
  return y;
}

class MlpOnMesh : public ::testing::TestWithParam<std::pair<int64_t, int64_t>> {};

TEST_P(MlpOnMesh, ComputesWhatOneDeviceComputes) {
  const auto [rows, columns] = GetParam();
  CpuRuntime runtime(mlp(rows, columns), {.seed = 11, .compare_ranks = true});
  CpuRuntime single(mlp(1, 1), {.seed = 11});
  runtime.initialize();
  single.initialize();
  for (const char* name : {"w1", "w2", "count"}) {
    EXPECT_EQ(runtime.read_source(name), single.read_source(name)) << name;
  }
  const std::vector<double> x = ramp(8 * 6);
  double shrunk = 1;
  for (int step = 0; step < 3; ++step, shrunk /= 2) {
    runtime.set_data("x", bytes_of(x));
    const StepResult result = runtime.step();
    ASSERT_EQ(result.outputs.size(), 2u);
    EXPECT_EQ(result.outputs[0].shape, (Shape{8, 5}));
    const std::vector<double> want = plain_mlp(x, 11, shrunk);
    double sum = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(result.outputs[0].values[i], want[i], 1e-12) << i;
      sum += want[i];
    }
    EXPECT_NEAR(result.value("sum"), sum, 1e-11);
    EXPECT_EQ(result.collectives, count_collectives(runtime.program()));
    EXPECT_GT(result.seconds, 0);
  }
  EXPECT_EQ(numbers_of<int32_t>(runtime.read_source("count")), std::vector<int32_t>{6});
  const auto w2 = numbers_of<double>(runtime.read_source("w2"));
  for (size_t i = 0; i < w2.size(); ++i) {
    EXPECT_EQ(w2[i], initial_value(kNormal, 11, "w2", static_cast<int64_t>(i)) / 8) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Meshes, MlpOnMesh,
                         ::testing::Values(std::pair(1, 1), std::pair(1, 2), std::pair(2, 1),
                                           std::pair(2, 2), std::pair(1, 3), std::pair(4, 2),
                                           std::pair(2, 6)));

// --- Moving tensors: a whole tensor that goes through every kind of instruction stays itself -----

// x arrives split in atoms; it is gathered, sliced, exchanged, masked, reduced and copied, and
// comes out as `out`, which must equal x.
Program round_trip(const Placements& in, DType dtype) {
  ProgramBuilder b({{"u", 2}, {"v", 3}});
  const std::vector<std::vector<int64_t>> dims = {{4}, {6, 12}, {5}};
  const TensorId x = b.source(SourceKind::kData, "x", dims, in, dtype);
  TensorId now = x;
  int made = 0;
  const auto step = [&](InstrKind kind, int32_t axis, Placement to) {
    Placements placements = b.program.tensor(now).layout.placements;
    if (axis >= 0) placements[static_cast<size_t>(axis)] = to;
    const TensorId next = b.tensor("t" + std::to_string(made++), dims, placements, dtype);
    b.move(kind, axis, {now}, {next});
    now = next;
  };
  // To the whole, the later axis first.
  for (int32_t axis : {1, 0}) {
    if (in[static_cast<size_t>(axis)].is_shard()) step(kAllGather, axis, kWhole);
  }
  step(kSlice, 0, cut(2));  // 12 in 2
  step(kSlice, 1, cut(2));  // 6 in 3
  step(kAllToAll, 1, cut(1));
  step(kCopy, -1, {});
  step(kAllGather, 1, kWhole);
  step(kAllToAll, 0, cut(0));
  if (is_float(dtype)) {
    step(kMask, 1, kPart);
    step(kReduceScatter, 1, cut(2));
    step(kAllGather, 1, kWhole);
    step(kMask, 1, kPart);
    step(kAllReduce, 1, kWhole);
  }
  step(kAllGather, 0, kWhole);
  b.output("out", now);
  return b.program;
}

TEST(CpuRuntime, MovingATensorAroundKeepsIt) {
  constexpr size_t kCount = 4 * 6 * 12 * 5;
  const std::vector<Placements> ways = {{kWhole, kWhole}, {cut(0), kWhole}, {kWhole, cut(1)},
                                        {cut(1), cut(1)}, {cut(2), cut(2)}, {cut(2), cut(1)}};
  for (const Placements& in : ways) {
    for (DType dtype : {DType::kF64, DType::kF32, DType::kI32}) {
      CpuRuntime runtime(round_trip(in, dtype), {.compare_ranks = true});
      std::vector<double> want(kCount);
      for (size_t i = 0; i < kCount; ++i) want[i] = static_cast<double>(i) + 1;
      const std::vector<float> f32(want.begin(), want.end());
      const std::vector<int32_t> i32(want.begin(), want.end());
      runtime.set_data("x", dtype == DType::kF64   ? bytes_of(want)
                            : dtype == DType::kF32 ? bytes_of(f32)
                                                   : bytes_of(i32));
      EXPECT_EQ(runtime.step().outputs[0].values, want)
          << to_string(runtime.program().tensor(0).layout, runtime.program().mesh);
    }
  }
}

// Slices and copies of strided tensors: x turned, cut, and turned back.
TEST(CpuRuntime, SlicesAndCopiesStridedTensors) {
  ProgramBuilder b({{"u", 3}});
  const TensorId x = b.source(SourceKind::kData, "x", {{4}, {6}}, {kWhole}, DType::kF64);
  const TensorId turned = b.tensor("turned", {{6}, {4}}, {kWhole}, DType::kF64);
  b.view(ops::transpose, "ab->ba", x, turned, {kNone});
  const TensorId part = b.tensor("part", {{6}, {4}}, {cut(0)}, DType::kF64);
  b.move(kSlice, 0, {turned}, {part});
  const TensorId part_back = b.tensor("part_back", {{4}, {6}}, {cut(1)}, DType::kF64);
  b.view(ops::transpose, "ba->ab", part, part_back, {by('b')});
  const TensorId copied = b.tensor("copied", {{4}, {6}}, {cut(1)}, DType::kF64);
  b.move(kCopy, -1, {part_back}, {copied});
  const TensorId out = b.tensor("out", {{4}, {6}}, {kWhole}, DType::kF64);
  b.move(kAllGather, 0, {copied}, {out});
  b.output("out", out);
  CpuRuntime runtime(b.program);
  const std::vector<double> want = ramp(24);
  runtime.set_data("x", bytes_of(want));
  EXPECT_EQ(runtime.step().outputs[0].values, want);
}

// --- Sources -------------------------------------------------------------------------------------

Program keeps(const Placements& placements, Init init, DType dtype = DType::kF32) {
  ProgramBuilder b({{"u", 2}, {"v", 3}});
  b.source(SourceKind::kParameter, "w", {{4}, {6, 12}}, placements, dtype, init);
  return b.program;
}

TEST(CpuRuntime, StartsFromTheSameBitsOnAnyMesh) {
  const std::vector<Placements> ways = {
      {kWhole, kWhole}, {cut(0), cut(1)}, {cut(2), cut(2)}, {kWhole, cut(2)}, {cut(1), kWhole}};
  for (const Placements& placements : ways) {
    for (const Init& init : {Init{Init::Kind::kConstant, 0.25}, Init{Init::Kind::kNormal, 0.02},
                             Init{Init::Kind::kUniform, 3}}) {
      CpuRuntime runtime(keeps(placements, init), {.seed = 5});
      runtime.initialize();
      const auto w = numbers_of<float>(runtime.read_source("w"));
      ASSERT_EQ(w.size(), 288u);
      for (size_t i = 0; i < w.size(); ++i) {
        const double n = normal_at(5, stream_of("w"), i), u = uniform_at(5, stream_of("w"), i);
        const double want = init.kind == Init::Kind::kConstant ? 0.25
                            : init.kind == Init::Kind::kNormal ? 0.02 * n
                                                               : 3 * (2 * u - 1);
        ASSERT_EQ(w[i], static_cast<float>(want)) << i;
      }
    }
  }
}

// Larger than a piece, and in stretches that pieces cut.
TEST(InitialState, PiecesOnAllCoresAreTheWhole) {
  ProgramBuilder b({{"u", 2}, {"v", 3}});
  const Init normal = {Init::Kind::kNormal, 0.02};
  for (const char* name : {"w1", "w2"}) {
    b.source(SourceKind::kParameter, name, {{1024}, {6, 120}}, {cut(1), kWhole}, DType::kF32,
             normal);
  }
  const Program p = b.program;
  const size_t count = 1024 * 3 * 120;
  std::vector<std::vector<float>> got(2, std::vector<float>(count, -1)), want = got;
  const auto shard = [&](size_t s, std::vector<std::vector<float>>& to) {
    return InitialShard{p.sources[s], p.tensor(p.sources[s].tensor),
                        reinterpret_cast<std::byte*>(to[s].data())};
  };
  const std::vector<int64_t> coordinates = {1, 2};
  fill_initial(std::vector{shard(0, got), shard(1, got)}, p.mesh, coordinates, 5);
  for (const size_t s : {0, 1}) {
    fill_initial(shard(s, want), p.mesh, coordinates, 5);
    EXPECT_EQ(got[s], want[s]);
  }
  EXPECT_NE(got[0], got[1]);
}

TEST(CpuRuntime, WritesAndReadsWholeSources) {
  std::vector<float> w(288);
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i);
  for (const Placements& p : {Placements{cut(2), cut(2)}, Placements{kWhole, cut(1)}}) {
    CpuRuntime runtime(keeps(p, {}));
    EXPECT_EQ(message_of([&] { runtime.read_source("w"); }), "param 'w' has no value yet");
    runtime.write_source("w", bytes_of(w));
    runtime.step();
    EXPECT_EQ(numbers_of<float>(runtime.read_source("w")), w);
    EXPECT_EQ(runtime.source_type("w"), (TensorType{DType::kF32, {4, 72}}));
  }
}

// A kernel that gives every rank something of its own, which replicas must not be.
void disagree(const KernelArgs& args) {
  static std::atomic<int> calls = 0;
  args.out[0].as<float>()[0] = static_cast<float>(++calls);
}
const OpDef kDisagree = {
    .name = "disagree", .factors = "...->...", .linear = true, .cpu = disagree};

TEST(CpuRuntime, ReplicasThatDifferAreReported) {
  ProgramBuilder b({{"u", 2}});
  const TensorId w = b.source(SourceKind::kState, "w", {{4}}, {kWhole});
  const TensorId next = b.over("next", w);
  b.compute(kDisagree, "a->a", {w}, {next}, {kNone});
  b.source_named("w").final = next;
  b.output("w", next);
  CpuRuntime runtime(b.program);
  runtime.initialize();
  runtime.step();
  EXPECT_EQ(message_of([&] { runtime.read_source("w"); }),
            "rank 1 holds other bits of 'w' than the first rank with its part");
  CpuRuntime comparing(b.program, {.compare_ranks = true});
  comparing.initialize();
  EXPECT_EQ(message_of([&] { comparing.step(); }), "output 'w' of rank 1 differs from rank 0's");
}

// --- What goes wrong -----------------------------------------------------------------------------

TEST(CpuRuntime, MissingAndMisshapenData) {
  CpuRuntime runtime(mlp(1, 2));
  EXPECT_EQ(message_of([&] { runtime.step(); }), "data 'x' has no value for this step");
  const std::vector<double> x = ramp(48), shorter = ramp(47);
  EXPECT_EQ(message_of([&] { runtime.set_data("x", bytes_of(shorter)); }),
            "'x' is f64[8, 6] of 384 bytes, got 376");
  runtime.set_data("x", bytes_of(x));
  EXPECT_EQ(message_of([&] { runtime.step(); }), "param 'w1' has no value: initialize it");
  runtime.initialize();
  const StepResult result = runtime.step();
  EXPECT_EQ(message_of([&] { runtime.step(); }), "data 'x' has no value for this step");
  EXPECT_EQ(message_of([&] { runtime.set_data("z", bytes_of(x)); }),
            "the program has no source 'z'");
  EXPECT_EQ(message_of([&] { runtime.set_data("w1", bytes_of(x)); }), "'w1' is not data");
  EXPECT_EQ(message_of([&] { runtime.read_source("x"); }),
            "'x' is data, not kept from step to step");
  EXPECT_EQ(message_of([&] { result.value("y"); }), "output 'y' is [8, 5], not one number");
  EXPECT_EQ(message_of([&] { result.value("q"); }), "there is no output 'q'");
}

TEST(CpuRuntime, AnUncheckedProgramDoesNotRun) {
  Program p = mlp(1, 2);
  p.instrs[0].splits[1] = kNone;
  EXPECT_THROW(CpuRuntime{p}, InternalError);
}

void stumble(const KernelArgs& args) {
  if (args.extents[0].position(0) > 0) fail("no second half");
  std::memset(args.out[0].data, 0, static_cast<size_t>(args.out[0].numel()) * sizeof(float));
}
const OpDef kStumble = {.name = "stumble", .factors = "...->...", .cpu = stumble};

// One rank fails while the other waits for it: nobody hangs, and the message says where.
TEST(CpuRuntime, AKernelsErrorEndsTheStep) {
  ProgramBuilder b({{"u", 2}});
  const TensorId x = b.source(SourceKind::kData, "x", {{4}}, {cut(0)});
  const TensorId y = b.tensor("y", {{4}}, {cut(0)});
  b.compute(kStumble, "a->a", {x}, {y}, {by('a')});
  const TensorId all = b.tensor("all", {{4}}, {kWhole});
  b.move(kAllGather, 0, {y}, {all});
  b.output("all", all);
  CpuRuntime runtime(b.program);
  const std::vector<float> data(4);
  runtime.set_data("x", bytes_of(data));
  EXPECT_EQ(message_of([&] { runtime.step(); }),
            "rank 1, instruction 0 stumble(x): no second half");
  EXPECT_EQ(message_of([&] { runtime.step(); }),
            "an earlier step has failed: rank 1, instruction 0 stumble(x): no second half");
}

void use_workspace(const KernelArgs& args) {
  auto* scratch = static_cast<float*>(args.workspace);
  const int64_t n = args.extents[0].local;
  ASSERT_EQ(reinterpret_cast<uintptr_t>(scratch) % 64, 0u);
  for (int64_t i = 0; i < n; ++i) scratch[i] = 2 * args.in[0].as<float>()[i];
  for (int64_t i = 0; i < n; ++i) args.out[0].as<float>()[i] = scratch[i];
  ASSERT_EQ(args.seed, 99u);
}
const OpDef kUseWorkspace = {.name = "use_workspace",
                             .factors = "...->...",
                             .workspace = [](const OpCall& call) { return call.extents[0] * 4; },
                             .cpu = use_workspace};

TEST(CpuRuntime, KernelsGetAWorkspaceAndTheSeed) {
  ProgramBuilder b({{"u", 2}});
  const TensorId x = b.source(SourceKind::kData, "x", {{10}}, {cut(0)});
  const TensorId y = b.tensor("y", {{10}}, {cut(0)});
  b.compute(kUseWorkspace, "a->a", {x}, {y}, {by('a')});
  const TensorId all = b.tensor("all", {{10}}, {kWhole});
  b.move(kAllGather, 0, {y}, {all});
  b.output("all", all);
  CpuRuntime runtime(b.program, {.seed = 99});
  const std::vector<float> data = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  runtime.set_data("x", bytes_of(data));
  EXPECT_EQ(runtime.step().outputs[0].values,
            (std::vector<double>{0, 2, 4, 6, 8, 10, 12, 14, 16, 18}));
}

}  // namespace
}  // namespace cleave
