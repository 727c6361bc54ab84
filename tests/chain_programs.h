// Programs of pointwise ops and reductions, as users write them: random ones, and those that a
// fusion of chains must make one or two kernels of.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "executor/lower.h"
#include "executor/runtime.h"
#include "executor/typing.h"
#include "graph/error.h"
#include "tests/training_plans.h"
#include "tracer/functional.h"
#include "tracer/tensor.h"

namespace cleave::testing {

// Numbers stay of the order of 1, so that rounding does not grow.
inline Tensor calm(const Tensor& x) { return x * reciprocal(1.0 + square(x)); }

// Rows and columns of x [a, b, c], vectors along each of its dimensions, reductions of all kinds
// and ops on them, drawn by the generator; up to four of the tensors are outputs.
inline Graph random_chain_program(std::mt19937& random, DType dtype, int ops = 14) {
  const auto below = [&](size_t n) { return random() % n; };
  static constexpr int64_t kSizes[] = {1, 2, 3, 5, 8, 12, 16, 33, 40, 64};
  const auto size = [&] { return kSizes[below(std::size(kSizes))]; };
  Tracer tracer("chains", {.compute = dtype});
  const int64_t a = size(), b = size(), c = size() * (below(3) == 0 ? 8 : 1);
  std::vector<Tensor> all;  // of any shapes that broadcast
  int inputs = 0;
  const auto input = [&](Shape shape) {
    all.push_back(data(fmt::format("x{}", inputs++), std::move(shape), dtype));
  };
  input({a, b, c});
  input({a, b, c});
  input({c});
  input({b, 1});
  const auto any = [&] { return all[below(all.size())]; };
  for (int i = 0; i < ops; ++i) {
    const Tensor x = any(), y = any();
    switch (below(15)) {
      case 0: all.push_back(x + y); break;
      case 1: all.push_back(calm(x * y)); break;
      case 2: all.push_back(x - y); break;
      case 3: all.push_back(tanh(x)); break;
      case 4: all.push_back(sigmoid(x) * 0.5); break;
      case 5: all.push_back(calm(gelu(x) + silu(y))); break;
      case 6: all.push_back(relu(x) / (1.0 + exp(-square(y)))); break;
      case 7: all.push_back(calm(x).mean({-1}, true)); break;
      case 8: all.push_back(x.max({-1}, true)); break;
      case 9: all.push_back(calm(x).logsumexp({-1}, true).to(dtype)); break;
      case 10:
        if (x.rank() == 3) all.push_back(calm(x).mean({0}, true));
        break;
      case 11:
        if (x.rank() == 3) all.push_back(calm(x).mean({0, 1}));
        break;
      case 12:
        if (x.rank() == 3) all.push_back(softmax(x + y));
        break;
      case 13: all.push_back(calm(x).mean()); break;
      default:
        if (x.rank() == 3) all.push_back(swiglu(calm(x), tanh(x)));
        break;
    }
  }
  std::vector<Tensor> outputs = {all.back()};
  for (int i = 0; i < 3; ++i) outputs.push_back(any());
  for (size_t o = 0; o < outputs.size(); ++o) {
    // An output of its own, not a data input.
    tracer.output(fmt::format("y{}", o), outputs[o] + 0.25);
  }
  return tracer.finish();
}

// The same numbers for every element type: multiples of 1/32 between -2 and 2.
inline void feed_chain(Runtime& runtime, const Program& program, uint32_t seed) {
  std::mt19937 random(seed);
  for (const ProgramSource& s : program.sources) {
    if (s.kind != SourceKind::kData) continue;
    const ProgramTensor& t = program.tensor(s.tensor);
    std::vector<std::byte> bytes;
    const auto add = [&](auto number) {
      const auto* from = reinterpret_cast<const std::byte*>(&number);
      bytes.insert(bytes.end(), from, from + sizeof(number));
    };
    for (int64_t i = 0; i < numel(t.geometry.shape); ++i) {
      const float x = (static_cast<float>(random() % 129) - 64) / 32;
      uint32_t bits;
      std::memcpy(&bits, &x, sizeof(bits));
      switch (t.dtype) {
        case DType::kF64: add(static_cast<double>(x)); break;
        case DType::kF32: add(x); break;
        case DType::kBF16: add(static_cast<uint16_t>(bits >> 16)); break;
        case DType::kF16: {
          // Exact: such numbers have few bits.
          const uint32_t exponent = bits >> 23 & 255;
          const uint32_t half = x == 0 ? 0 : (exponent - 112) << 10 | (bits >> 13 & 1023);
          add(static_cast<uint16_t>((bits >> 16 & 0x8000) | half));
          break;
        }
        case DType::kI32: add(static_cast<int32_t>(random() % 3)); break;
        case DType::kF8E4M3:
        case DType::kF8E5M2:
        case DType::kI16: CLEAVE_ASSERT(false, "no chain reads {}", name_of(t.dtype)); break;
      }
    }
    runtime.set_data(s.name, bytes);
  }
}

inline std::vector<StepOutput> run_chain(const Program& program, Processor processor,
                                         uint32_t seed) {
  const auto runtime = make_runtime(program, processor, {.seed = 3});
  runtime->initialize();
  feed_chain(*runtime, program, seed);
  return runtime->step().outputs;
}

// The largest |a - b| / (1 + largest |b| of its tensor).
inline double apart(const std::vector<StepOutput>& a, const std::vector<StepOutput>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t o = 0; o < std::min(a.size(), b.size()); ++o) {
    double most = 1;
    for (const double y : b[o].values) most = std::max(most, 1 + std::abs(y));
    for (size_t i = 0; i < b[o].values.size(); ++i) {
      const double d = std::abs(a[o].values[i] - b[o].values[i]) / most;
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
    }
  }
  return worst;
}

// How many kernels it launches: instructions that are no views.
inline int64_t kernels_of(const Program& program) {
  return std::count_if(program.instrs.begin(), program.instrs.end(),
                       [&](const Instr& i) { return !is_view(program, i); });
}

}  // namespace cleave::testing
