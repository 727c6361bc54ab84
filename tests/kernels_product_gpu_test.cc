// Our own products of bf16 on tensor cores, with what stands behind them, beside sums in double.
#include <gtest/gtest.h>

#ifdef CLEAVE_CUDA

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "executor/cuda/memory.h"
#include "graph/half.h"
#include "graph/philox.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/product_hopper.h"
#include "kernels/ops.h"
#include "tests/support/gpu_checks.h"
#include "tests/support/op_checks.h"

namespace cleave {
namespace {

// A result [rows, columns] of sums over k, and how far its rows are apart.
struct Sizes {
  int64_t rows, columns, k, apart;
};

class OwnProducts : public ::testing::TestWithParam<Sizes> {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
    cudaDeviceProp properties;
    cuda_check(cudaGetDeviceProperties(&properties, 0));
    multiprocessors_ = properties.multiProcessorCount;
    major_ = properties.major;
  }
  int multiprocessors_ = 0, major_ = 0;
};

// Numbers of bf16 on the device and, as doubles, here.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, int64_t apart, uint64_t stream)
      : rows_(rows),
        columns_(columns),
        apart_(apart),
        bits_(static_cast<size_t>(rows * apart)),
        memory_(rows * apart * 2) {
    for (size_t i = 0; i < bits_.size(); ++i) {
      bits_[i] = bf16_bits(uniform_at(7, stream, i) * 2 - 1);
    }
    write();
  }
  // The same numbers, in a place of their own.
  Matrix(const Matrix& like)
      : rows_(like.rows_),
        columns_(like.columns_),
        apart_(like.apart_),
        bits_(like.bits_),
        memory_(rows_ * apart_ * 2) {
    write();
  }
  Matrix& operator=(const Matrix&) = delete;
  void read() {
    cuda_check(cudaMemcpy(bits_.data(), memory_.data(), bits_.size() * 2, cudaMemcpyDeviceToHost));
  }
  double at(int64_t row, int64_t column) const {
    return bf16_number(bits_[static_cast<size_t>(row * apart_ + column)]);
  }
  const std::vector<uint16_t>& bits() const { return bits_; }
  const uint16_t* row(int64_t r) const { return bits_.data() + r * apart_; }
  // Whether what lies between the rows is the same in both.
  bool same_between(const Matrix& other) const {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = columns_; c < apart_; ++c) {
        const auto i = static_cast<size_t>(r * apart_ + c);
        if (bits_[i] != other.bits_[i]) return false;
      }
    }
    return true;
  }
  void* data() const { return memory_.data(); }

 private:
  void write() {
    cuda_check(cudaMemcpy(memory_.data(), bits_.data(), bits_.size() * 2, cudaMemcpyHostToDevice));
  }

  int64_t rows_, columns_, apart_;
  std::vector<uint16_t> bits_;
  DeviceMemory memory_;
};

// Of a [rows, k] and b [k, columns] or, when it is not `across`, [columns, k].
std::vector<double> sums_of(const Matrix& a, const Matrix& b, bool across, const Sizes& n) {
  std::vector<double> of_b(static_cast<size_t>(n.k * n.columns)),
      sums(static_cast<size_t>(n.rows * n.columns), 0);
  for (int64_t i = 0; i < n.k; ++i) {
    for (int64_t c = 0; c < n.columns; ++c) {
      of_b[static_cast<size_t>(i * n.columns + c)] = across ? b.at(i, c) : b.at(c, i);
    }
  }
  for (int64_t r = 0; r < n.rows; ++r) {
    double* const to = &sums[static_cast<size_t>(r * n.columns)];
    for (int64_t i = 0; i < n.k; ++i) {
      const double x = a.at(r, i);
      const double* const from = &of_b[static_cast<size_t>(i * n.columns)];
      for (int64_t c = 0; c < n.columns; ++c) to[c] += x * from[c];
    }
  }
  return sums;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu(double x) { return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)); }
double slope(double x) { return (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5; }

TEST_P(OwnProducts, AreNearSumsInDouble) {
  const auto [rows, columns, k, apart] = GetParam();
  std::vector<double> sums;
  for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kGelu, Epilogue::kGeluBackward}) {
    const bool backward = epilogue == Epilogue::kGeluBackward;
    const int64_t apart_a = (k + 15) / 8 * 8, apart_b = ((backward ? columns : k) + 23) / 8 * 8;
    const Matrix a(rows, k, apart_a, 1);
    const Matrix b(backward ? k : columns, backward ? columns : k, apart_b, 2);
    const Matrix bias(1, columns, columns, 3), before(rows, columns, apart, 4),
        beside_before(rows, columns, apart, 5);
    if (epilogue != Epilogue::kGelu) sums = sums_of(a, b, backward, GetParam());
    for (const bool more : {false, true}) {  // a bias; behind GELU's slope, sums over rows
      const bool has_bias = more && !backward;
      Product p;
      p.m = columns, p.n = rows, p.k = k;
      p.transpose_a = !backward;
      p.a.leading = apart_b, p.b.leading = apart_a, p.d.leading = apart;
      p.in = p.out = DType::kBF16;
      p.has_bias = has_bias;
      p.sums = more && backward;
      p.epilogue = epilogue;
      const size_t kernels = own_kernels(p, major_);
      ASSERT_EQ(kernels > 0, major_ == 9);
      for (size_t which = 0; which < kernels; ++which) {
        const std::string what =
            fmt::format("[{}, {}] over {}, epilogue {}{}, kernel {}", rows, columns, k,
                        static_cast<int>(epilogue), more ? " and more" : "", which);
        const int64_t parts = (rows + kSummedColumns - 1) / kSummedColumns;
        std::vector<uint16_t> first;
        std::vector<float> over_rows(static_cast<size_t>(parts * columns)), first_over_rows;
        const DeviceMemory parts_memory(parts * columns * 4);
        // Also by one cluster and by three, whose warpgroups then have many turns; and, of the
        // slope, in the place of what is beside.
        for (const int multiprocessors : {multiprocessors_, 2, 6, -2, -multiprocessors_}) {
          if (multiprocessors < 0 && !backward) continue;
          const bool in_place = multiprocessors < 0;
          Matrix y(in_place ? beside_before : before), beside(beside_before);
          cuda_check(cudaMemset(parts_memory.data(), 0xff, over_rows.size() * 4));  // NaN
          run_own_kernel(
              p,
              {b.data(), a.data(), nullptr, bias.data(), y.data(),
               in_place ? y.data() : beside.data(), reinterpret_cast<float*>(parts_memory.data())},
              which, std::abs(multiprocessors), nullptr);
          cuda_check(cudaDeviceSynchronize());
          cuda_check(cudaMemcpy(over_rows.data(), parts_memory.data(), over_rows.size() * 4,
                                cudaMemcpyDeviceToHost));
          y.read();
          beside.read();
          EXPECT_TRUE(y.same_between(in_place ? beside_before : before)) << what;
          EXPECT_TRUE(beside.same_between(beside_before)) << what;
          if (epilogue != Epilogue::kGelu) {
            EXPECT_EQ(beside.bits(), beside_before.bits()) << what;
          }
          if (!first.empty()) {
            for (int64_t r = 0; r < rows; ++r) {
              EXPECT_TRUE(std::equal(y.row(r), y.row(r) + columns, first.data() + r * apart))
                  << what << ", by " << multiprocessors << ", row " << r;
            }
            if (p.sums) {
              EXPECT_EQ(over_rows, first_over_rows) << what << ", by " << multiprocessors;
            }
            continue;
          }
          first = y.bits();
          first_over_rows = over_rows;
          const auto near = [](double got, double want) {
            return std::abs(got - want) <= 4e-3 * std::abs(want) + 1e-3;
          };
          int wrong = 0;
          for (int64_t r = 0; r < rows && wrong < 3; ++r) {
            for (int64_t c = 0; c < columns && wrong < 3; ++c) {
              const double sum =
                  sums[static_cast<size_t>(r * columns + c)] + (has_bias ? bias.at(0, c) : 0);
              const double want = epilogue == Epilogue::kNone ? sum
                                  : backward                  ? sum * slope(beside_before.at(r, c))
                                                              : gelu(sum);
              const bool good = near(y.at(r, c), want) &&
                                (epilogue != Epilogue::kGelu || near(beside.at(r, c), sum));
              EXPECT_TRUE(good) << what << ": at " << r << ", " << c << " " << y.at(r, c)
                                << " instead of " << want << "; " << beside.at(r, c)
                                << " of a sum of " << sum;
              if (!good) ++wrong;
            }
          }
          for (int64_t c = 0; p.sums && c < columns; ++c) {
            double got = 0, want = 0;
            for (int64_t part = 0; part < parts; ++part) {
              got += over_rows[static_cast<size_t>(part * columns + c)];
            }
            for (int64_t r = 0; r < rows; ++r) {
              want += sums[static_cast<size_t>(r * columns + c)] * slope(beside_before.at(r, c));
            }
            ASSERT_NEAR(got, want, 2e-5 * static_cast<double>(rows) + 2e-3)
                << what << ", sum " << c;
          }
        }
      }
    }
  }
}

double silu(double x) { return x * sigmoid(x); }
double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

// What a kernel has made, and what it should have; where they differ most, in words.
void expect_near(const Matrix& got, const std::vector<double>& want, const Sizes& n,
                 const std::string& what) {
  double worst = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < n.rows * n.columns; ++i) {
    const double w = want[static_cast<size_t>(i)];
    const double off =
        std::abs(got.at(i / n.columns, i % n.columns) - w) / (4e-3 * std::abs(w) + 1e-3);
    if (!(off <= worst)) worst = off, at = i;
  }
  EXPECT_LE(worst, 1) << what << ": at " << at / n.columns << ", " << at % n.columns << " "
                      << got.at(at / n.columns, at % n.columns) << " instead of "
                      << want[static_cast<size_t>(at)];
}

// SwiGLU of two products of the same, and, of one, the gradients of its operands.
TEST_P(OwnProducts, MakeSwigluAndItsBackward) {
  const Sizes n = GetParam();
  const auto [rows, columns, k, apart] = n;
  const int64_t apart_a = (k + 15) / 8 * 8, apart_y = apart + 8;
  const Matrix a(rows, k, apart_a, 1);
  for (const bool backward : {false, true}) {
    const int64_t apart_b = ((backward ? columns : k) + 23) / 8 * 8;
    const Matrix b(backward ? k : columns, backward ? columns : k, apart_b, 2),
        other_b(columns, k, apart_b, 3);
    const Matrix y_before(rows, columns, apart_y, 4), other_y_before(rows, columns, apart_y, 5),
        gate_before(rows, columns, apart, 6), up_before(rows, columns, apart, 7);
    const std::vector<double> sums = sums_of(a, b, backward, n);
    std::vector<double> of_gate = sums, of_up, made = sums;
    if (backward) {
      of_up = sums;
      for (int64_t i = 0; i < rows * columns; ++i) {
        const double g = gate_before.at(i / columns, i % columns),
                     u = up_before.at(i / columns, i % columns);
        of_gate[static_cast<size_t>(i)] *= u * silu_slope(g);
        of_up[static_cast<size_t>(i)] *= silu(g);
      }
    } else {
      of_up = sums_of(a, other_b, false, n);
      for (size_t i = 0; i < made.size(); ++i) made[i] = silu(of_gate[i]) * of_up[i];
    }
    Product p;
    p.m = columns, p.n = rows, p.k = k;
    p.transpose_a = !backward;
    p.a.leading = apart_b, p.b.leading = apart_a, p.d.leading = apart_y, p.beside = apart;
    p.in = p.out = DType::kBF16;
    p.epilogue = backward ? Epilogue::kSwigluBackward : Epilogue::kSwiglu;
    const size_t kernels = own_kernels(p, major_);
    ASSERT_EQ(kernels > 0, major_ == 9);
    for (size_t which = 0; which < kernels; ++which) {
      std::vector<std::vector<uint16_t>> first;
      for (const int multiprocessors : {multiprocessors_, 2, 6, -2, -multiprocessors_}) {
        if (multiprocessors < 0 && !backward) continue;
        const bool in_place = multiprocessors < 0;
        if (in_place) p.d.leading = apart;
        const std::string what =
            fmt::format("[{}, {}] over {}, {}, kernel {}, by {}", rows, columns, k,
                        backward ? "backward" : "forward", which, multiprocessors);
        Matrix gate(gate_before), up(up_before);
        Matrix y(in_place ? gate_before : y_before), other_y(in_place ? up_before : other_y_before);
        ProductData data = {.a = b.data(), .b = a.data()};
        data.d = y.data(), data.aux = in_place ? y.data() : gate.data();
        if (!backward) data.other.a = other_b.data();
        if (backward) data.other.d = other_y.data();
        data.other.aux = in_place ? other_y.data() : up.data();
        run_own_kernel(p, data, which, std::abs(multiprocessors), nullptr);
        cuda_check(cudaDeviceSynchronize());
        for (Matrix* m : {&gate, &up, &y, &other_y}) m->read();
        EXPECT_TRUE(gate.same_between(gate_before) && up.same_between(up_before)) << what;
        EXPECT_TRUE(y.same_between(in_place ? gate_before : y_before)) << what;
        EXPECT_TRUE(other_y.same_between(in_place ? up_before : other_y_before)) << what;
        if (backward) {
          EXPECT_TRUE(gate.bits() == gate_before.bits() && up.bits() == up_before.bits()) << what;
          expect_near(y, of_gate, n, what + ", of the gate");
          expect_near(other_y, of_up, n, what + ", of the other");
        } else {
          EXPECT_EQ(other_y.bits(), other_y_before.bits()) << what;
          expect_near(gate, of_gate, n, what + ", the gate");
          expect_near(up, of_up, n, what + ", the other");
          expect_near(y, made, n, what);
        }
        // The same bits, by however many.
        std::vector<std::vector<uint16_t>> results;
        for (const Matrix* m : {&y, backward ? &other_y : &gate, backward ? &other_y : &up}) {
          results.emplace_back();
          for (int64_t r = 0; r < rows; ++r) {
            results.back().insert(results.back().end(), m->row(r), m->row(r) + columns);
          }
        }
        if (first.empty()) first = results;
        EXPECT_EQ(results, first) << what;
      }
      p.d.leading = apart_y;
    }
  }
}

// One tile, parts of tiles, more than one of a cluster, more than multiprocessors, and sums that
// are longer than the ring of stages.
INSTANTIATE_TEST_SUITE_P(Sizes, OwnProducts,
                         ::testing::Values(Sizes{1, 8, 8, 8}, Sizes{77, 200, 72, 208},
                                           Sizes{128, 192, 64, 192}, Sizes{129, 400, 136, 400},
                                           Sizes{200, 264, 77, 264}, Sizes{300, 136, 1032, 144},
                                           Sizes{700, 768, 200, 768}, Sizes{900, 584, 776, 592},
                                           Sizes{2300, 3080, 264, 3080}),
                         [](const auto& of) {
                           return fmt::format("{}x{}x{}", of.param.rows, of.param.columns,
                                              of.param.k);
                         });

// As linear has them, with what is added up where.
TEST(OwnProductsInLinear, AreWhatTheReferenceIs) {
  if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
  const testing::OwnProductsFirst first;
  for (const testing::OpCase& c : testing::basic_op_cases()) {
    if (c.op == &ops::linear || c.op == &ops::matmul) testing::check_on_gpu(c);
  }
}

// What our kernels do not compute is left to cuBLASLt.
TEST(OwnProductsOfOtherKinds, AreNone) {
  Product p;
  p.m = 64, p.n = 64, p.k = 64;
  p.transpose_a = true;
  p.a.leading = p.b.leading = p.d.leading = 64;
  p.in = p.out = DType::kBF16;
  ASSERT_GT(own_kernels(p, 9), 0U);
  const auto none = [&](auto change) {
    Product other = p;
    change(other);
    return own_kernels(other, 9) == 0;
  };
  EXPECT_TRUE(none([](Product& o) { o.in = DType::kF32; }));
  EXPECT_TRUE(none([](Product& o) { o.out = DType::kF32; }));
  EXPECT_TRUE(none([](Product& o) { o.batch = 2; }));
  EXPECT_TRUE(none([](Product& o) { o.has_c = true; }));
  EXPECT_TRUE(none([](Product& o) { o.alignment = 8; }));
  EXPECT_TRUE(none([](Product& o) { o.m = 68; }));
  EXPECT_TRUE(none([](Product& o) { o.transpose_b = true; }));
  EXPECT_TRUE(none([](Product& o) { o.transpose_a = false; }));
  EXPECT_TRUE(none([](Product& o) { o.epilogue = Epilogue::kGeluBackward; }));
  EXPECT_TRUE(none([](Product& o) { o.sums = true; }));
  EXPECT_TRUE(none([](Product& o) { o.epilogue = Epilogue::kSwigluBackward; }));
  EXPECT_TRUE(none([](Product& o) { o.epilogue = Epilogue::kSwiglu, o.has_bias = true; }));
  Product slope = p;
  slope.transpose_a = false, slope.epilogue = Epilogue::kGeluBackward, slope.sums = true;
  ASSERT_GT(own_kernels(slope, 9), 0U);
  std::swap(p, slope);
  EXPECT_TRUE(none([](Product& o) { o.has_bias = true; }));
  EXPECT_TRUE(none([](Product& o) { o.n = int64_t{1} << 25; }));  // parts of sums have no room
  std::swap(p, slope);
  EXPECT_EQ(own_kernels(p, 8), 0U);
  EXPECT_EQ(own_kernels(p, 10), 0U);
}

#else

TEST(OwnProducts, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
