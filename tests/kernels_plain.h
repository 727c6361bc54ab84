// Tensors of random numbers, and ops applied to them: for tests of kernels against plain loops.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "graph/philox.h"
#include "kernels/ops.h"
#include "tests/support/op_runner.h"

namespace cleave {
using testing::Application;
using testing::HostTensor;
using testing::MemoryLayout;

using Numbers = std::vector<double>;

inline size_t at(int64_t i) { return static_cast<size_t>(i); }

inline Numbers random_numbers(int64_t n, uint64_t stream, double low = -1, double high = 1) {
  Numbers x(at(n));
  for (int64_t i = 0; i < n; ++i) {
    x[at(i)] = low + (high - low) * uniform_at(1, stream, static_cast<uint64_t>(i));
  }
  return x;
}

// A tensor whose numbers are exact in its element type.
inline HostTensor tensor(DType dtype, Shape shape, Numbers numbers) {
  if (dtype != DType::kF64) {
    for (double& x : numbers) x = testing::rounded(x, dtype);
  }
  return {{dtype, std::move(shape)}, std::move(numbers)};
}
inline HostTensor random_tensor(DType dtype, Shape shape, uint64_t stream, double low = -1,
                                double high = 1) {
  const int64_t n = numel(shape);
  return tensor(dtype, std::move(shape), random_numbers(n, stream, low, high));
}
inline HostTensor integers(Shape shape, uint64_t stream, int64_t low, int64_t high) {
  Numbers x =
      random_numbers(numel(shape), stream, static_cast<double>(low), static_cast<double>(high));
  for (double& v : x) v = std::floor(v);
  return {{DType::kI32, std::move(shape)}, std::move(x)};
}

inline Application application(const OpDef& op, std::vector<HostTensor> in,
                               std::string factors = {}, Attrs attrs = {}) {
  Application a{&op, nullptr, std::move(attrs), {}, std::move(in)};
  const auto types = a.in_types();
  a.signature =
      &Signature::get(expand_factors(factors.empty() ? op.factors.text() : factors, types));
  a.extents = testing::whole_extents(solve_extents(*a.signature, a.attrs, types));
  return a;
}

inline Value add_data(Graph& g, std::string name, DType dtype, Shape shape) {
  Source source;
  source.name = std::move(name);
  return g.add_source(std::move(source), {dtype, std::move(shape)});
}

inline void expect_near(const Numbers& got, const Numbers& want, double tolerance,
                        const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], tolerance * (1 + std::abs(want[i]))) << what << "[" << i << "]";
  }
}

inline double tolerance_of(DType dtype) { return dtype == DType::kF64 ? 1e-11 : 3e-5; }

inline constexpr DType kFloats[] = {DType::kF64, DType::kF32};

// Every extent that one or two cuts make of a size.
inline std::vector<Extent> cut_extents(int64_t size) {
  std::vector<Extent> result = {{size, size, {}}};
  for (int64_t blocks : {1, 2, 3}) {
    for (int64_t parts : {2, 4}) {
      for (int64_t index = 0; index < parts; ++index) {
        if (size % (blocks * parts) != 0) continue;
        const int64_t local = size / parts;
        result.push_back({local, size, {{blocks, parts, index}}});
        if (local % 2 != 0) continue;
        for (int64_t second : {0, 1}) {
          result.push_back({local / 2, size, {{blocks, parts, index}, {1, 2, second}}});
        }
      }
    }
  }
  return result;
}

}  // namespace cleave
