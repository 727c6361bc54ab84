// Chains of pointwise ops and reductions: fused programs give the numbers of those that are not,
// what users write by hand becomes one or two kernels, and every kernel compiles.
#include "kernels/chain.h"

#include <set>

#include "executor/fuse.h"
#include "graph/error.h"
#include "kernels/loops.h"
#include "kernels/ops.h"
#include "tests/chain_programs.h"
#include "tests/support/sanitized.h"
#include "tracer/autodiff.h"

#ifdef CLEAVE_CUDA
#include "kernels/cuda/chain_text.h"
#include "tests/support/op_runner.h"
#endif

namespace cleave {
namespace {

using testing::apart;
using testing::feed_chain;
using testing::kernels_of;
using testing::plan_for;
using testing::random_chain_program;
using testing::run_chain;

int64_t chains_in(const Program& program) {
  return std::count_if(program.instrs.begin(), program.instrs.end(),
                       [](const Instr& i) { return i.op == &ops::chain; });
}

constexpr uint32_t kPrograms = drawn(120u);

TEST(Chains, RandomProgramsGiveTheSameNumbers) {
  int64_t chains = 0, parts = 0, kernels = 0;
  for (uint32_t seed = 0; seed < kPrograms; ++seed) {
    std::mt19937 random(seed);
    const Graph graph = random_chain_program(random, DType::kF64);
    const Plan plan = plan_for(graph, "1", {});
    const Program whole = lower(graph, plan), fused = lower(graph, plan, true);
    chains += chains_in(fused);
    parts += kernels_of(whole);
    kernels += kernels_of(fused);
    EXPECT_LT(
        apart(run_chain(fused, Processor::kCpu, seed), run_chain(whole, Processor::kCpu, seed)),
        1e-12)
        << "seed " << seed << "\n"
        << to_text(whole) << "\n"
        << to_text(fused);
  }
  fmt::print("{} ops in {} kernels, {} of them chains\n", parts, kernels, chains);
  EXPECT_GT(chains, kPrograms);
  EXPECT_LT(2 * kernels, parts);
}

// What a user writes, and how many kernels it may become.
struct Written {
  const char* name;
  int64_t forward, all;  // kernels of the forward, and with the backward
  Tensor (*loss)(const std::vector<Tensor>& rows, const Tensor& weight);
};

Tensor rms(const Tensor& x, const Tensor& weight) {
  const Tensor scale = reciprocal(sqrt(mean(square(x), {-1}, true) + 1e-6));
  return x * scale * weight;
}

const Written kWritten[] = {
    // Everything up to the rows' losses, and their mean.
    {"RmsNormWithResidual", 2, 9,
     [](const auto& x, const Tensor& w) { return mean(square(rms(x[0] + x[1], w))); }},
    {"GatedUnit", 2, 8,
     [](const auto& x, const Tensor& w) { return mean(silu(x[0]) * (x[1] * w)); }},
    {"TanhGatedUnit", 2, 8,
     [](const auto& x, const Tensor& w) { return mean(tanh(x[0]) * sigmoid(x[1] + w) + x[0]); }},
    {"SoftmaxWithTemperature", 2, 9,
     [](const auto& x, const Tensor& w) {
       const Tensor p = softmax(x[0] * 0.7 + w);
       return mean(p * x[1]);
     }},
    {"SmoothedLoss", 2, 9,
     [](const auto& x, const Tensor& w) {
       const Tensor scores = x[0] * w;
       const Tensor row =
           logsumexp(scores, {-1}) - 0.9 * sum(scores * x[1], {-1}) - 0.1 * mean(scores, {-1});
       return mean(row);
     }},
};

class WrittenByHand : public ::testing::TestWithParam<Written> {};

TEST_P(WrittenByHand, IsFewKernels) {
  const Written& written = GetParam();
  for (const bool backward : {false, true}) {
    Tracer tracer(written.name, {.compute = DType::kF64});
    const std::vector<Tensor> x = {parameter("p0", {24, 40}, {Init::Kind::kUniform, 1}),
                                   data("x1", {24, 40}, DType::kF64)};
    const Tensor w = parameter("w", {40}, {Init::Kind::kUniform, 1});
    const Tensor loss = written.loss(x, w);
    tracer.output("loss", loss);
    if (backward) {
      tracer.set_phase(Phase::kBackward);
      const std::vector<Tensor> of = {x[0], w};
      const std::vector<Tensor> grads = gradients(loss, of);
      for (size_t i = 0; i < grads.size(); ++i) tracer.output(fmt::format("d{}", i), grads[i]);
    }
    const Graph graph = tracer.finish();
    const Plan plan = plan_for(graph, "1", {});
    const Program whole = lower(graph, plan), fused = lower(graph, plan, true);
    EXPECT_LE(kernels_of(fused), backward ? written.all : written.forward) << to_text(fused);
    EXPECT_LT(apart(run_chain(fused, Processor::kCpu, 1), run_chain(whole, Processor::kCpu, 1)),
              1e-12);
    fmt::print("{}{}: {} kernels instead of {}\n", written.name, backward ? " and backward" : "",
               kernels_of(fused), kernels_of(whole));
  }
}

INSTANTIATE_TEST_SUITE_P(Chains, WrittenByHand, ::testing::ValuesIn(kWritten),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Chains, TextIsTheSameChain) {
  const Attrs attrs = {{"parts",
                        "scale ab->ab 0 value=d0.5; max ab->a|b:max p0; sub ab,a->ab p0 p1; "
                        "swiglu_backward ab,ab,ab->ab,ab p0 p2 p2"},
                       {"results", "p3.1 p1"}};
  EXPECT_EQ(attrs_of(chain_of(attrs)), attrs);
  for (const char* parts :
       {"scale", "matmul ab,bc->ac 0 1", "add ab,ab->ab 0 p0", "neg ab->ab x"}) {
    EXPECT_THROW(chain_of({{"parts", std::string(parts)}, {"results", std::string("p0")}}), Error)
        << parts;
  }
}

#ifdef CLEAVE_CUDA

// The chain's kernels for operands that lie as they do, or row-major at an address that is a
// multiple of everything.
void compile_all(const KernelArgs& args, std::set<std::string>& texts) {
  for (const ChainKernel& k : chain_kernels(chain_loops(args))) {
    if (!texts.insert(k.text).second) continue;
    EXPECT_FALSE(compiled(k.text, "sm_90").empty()) << k.text;
    EXPECT_GT(k.across, 0);
    EXPECT_LE(k.down, 65535);
  }
}
void compile_all(const Program& program, std::set<std::string>& texts) {
  for (const Instr& instr : program.instrs) {
    if (instr.op != &ops::chain) continue;
    std::vector<TensorView> in, out;
    const auto view = [&](TensorId t) {
      const ProgramTensor& tensor = program.tensor(t);
      return TensorView{nullptr, tensor.dtype, tensor.geometry.shape, tensor.geometry.strides};
    };
    for (TensorId t : instr.in) in.push_back(view(t));
    for (TensorId t : instr.out) out.push_back(view(t));
    const std::vector<Extent> extents =
        local_extents(instr, program.mesh, program.mesh.coordinates(0));
    compile_all({.signature = *instr.signature,
                 .attrs = instr.attrs,
                 .in = in,
                 .out = out,
                 .extents = extents},
                texts);
  }
}

// Kernels that go down columns count these, and rows, in 32 bits.
TEST(Chains, OfTooManyRowsOrColumnsAreNone) {
  const Chain chain = chain_of(
      {{"parts", std::string("square ab->ab 0; sum ab->b p0")}, {"results", std::string("p1")}});
  const Signature& signature = Signature::get("Ab->b");
  const auto planned = [&](int64_t rows, int64_t columns) {
    return plan_of(chain, signature, std::vector<int64_t>{rows, columns}).has_value();
  };
  constexpr int64_t kMany = int64_t{1} << 31;
  EXPECT_TRUE(planned(2, kMany / 4));
  EXPECT_TRUE(planned(kMany / 4, 2));
  EXPECT_FALSE(planned(2, kMany));
  EXPECT_FALSE(planned(kMany, 2));
}

TEST(Chains, EveryKernelCompiles) {
  std::set<std::string> texts;
  const DType types[] = {DType::kBF16, DType::kF32, DType::kF16, DType::kF64};
  constexpr uint32_t kCompiled = drawn(16u);
  for (uint32_t seed = 0; seed < kCompiled; ++seed) {
    std::mt19937 random(seed + 1000);
    const Graph graph = random_chain_program(random, types[seed % 4], 8);
    compile_all(lower(graph, plan_for(graph, "1", {}), true), texts);
  }
  fmt::print("{} kernels\n", texts.size());
  EXPECT_GT(texts.size(), kCompiled);
}

// The kernels of one chain of row-major operands.
std::set<std::string> kernels_of_chain(const std::string& factors, const std::string& parts,
                                       const std::string& results, DType dtype,
                                       const std::vector<int64_t>& sizes) {
  const Signature& signature = Signature::get(factors);
  const Attrs attrs = {{"parts", parts}, {"results", results}};
  const auto views = [&](const std::vector<OperandDims>& operands) {
    std::vector<TensorView> all;
    for (const OperandDims& dims : operands) {
      Shape shape;
      for (const int8_t f : factors_of(dims)) shape.push_back(sizes[static_cast<size_t>(f)]);
      all.push_back({nullptr, dtype, shape, contiguous_strides(shape)});
    }
    return all;
  };
  const std::vector<TensorView> in = views(signature.inputs()), out = views(signature.outputs());
  std::vector<Extent> extents;
  for (const int64_t size : sizes) extents.push_back({size, size, {}});
  std::set<std::string> texts;
  compile_all({.signature = signature, .attrs = attrs, .in = in, .out = out, .extents = extents},
              texts);
  return texts;
}

// More of them than 256 threads of a block have shared memory for.
TEST(Chains, OfThirtyReductionsCompile) {
  std::string factors, parts, total;
  int made = 0;
  for (int i = 0; i < 15; ++i) {
    factors += i == 0 ? "Ab" : ",Ab";
    for (const char* reduction : {"sum ab->b", "max ab->b|a:max"}) {
      parts += fmt::format("{}{} {}", made == 0 ? "" : "; ", reduction, i);
      const std::string one = fmt::format("p{}", made++);
      if (!total.empty()) parts += fmt::format("; add b,b->b {} {}", total, one);
      total = total.empty() ? one : fmt::format("p{}", made++);
    }
  }
  EXPECT_EQ(kernels_of_chain(factors + "->b", parts, total, DType::kF64, {512, 64}).size(), 2u);
}

// What costs is kept from one pass over a row to the next where a thread holds its elements, and
// computed again where it reads them again.
TEST(Chains, OfRowsThatAreHeldAndReadAgainCompile) {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    for (const int64_t length : {3000, 12000, 20001, 32768, 50257, 65536}) {
      kernels_of_chain("aB->aB", "tanh ab->ab 0; sum ab->a p0; div ab,a->ab p0 p1", "p2", dtype,
                       {2, length});
      kernels_of_chain("aB->a", "logsumexp ab->a|b:lse 0; sum ab->a 0; sub a,a->a p0 p1", "p2",
                       dtype, {2, length});
    }
  }
}

#endif

}  // namespace
}  // namespace cleave
