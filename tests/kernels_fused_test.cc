// Fused kernels against plain loops in double, written from the formulas, on odd shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "graph/error.h"
#include "graph/graph.h"
#include "graph/philox.h"
#include "kernels/dropout_mask.h"
#include "kernels/ops.h"
#include "kernels/shard_index.h"
#include "kernels/vector_math.h"
#include "tests/kernels_plain.h"

namespace cleave {
namespace {

// --- Exponential ---------------------------------------------------------------------------------

TEST(Exponential, WithinOneUnitInTheLastPlace) {
  for (uint64_t bits = 0; bits < 0xFFFFFFFF; bits += 9973) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    const float got = exp_of(x);
    if (std::isnan(x)) {
      ASSERT_TRUE(std::isnan(got));
      continue;
    }
    const double exact = std::exp(static_cast<double>(x));
    const float rounded = static_cast<float>(exact);
    if (std::isinf(rounded)) {
      ASSERT_EQ(got, rounded) << x;
      continue;
    }
    const double unit = std::nextafter(rounded, std::numeric_limits<float>::infinity()) - rounded;
    ASSERT_LE(std::abs(got - exact), std::max(unit, 0x1p-149)) << x;
  }
}

// --- Shards --------------------------------------------------------------------------------------

TEST(ShardIndex, InvertsPosition) {
  for (const Extent& e : cut_extents(48)) {
    std::vector<int64_t> want(at(e.global), -1);
    for (int64_t i = 0; i < e.local; ++i) want[at(e.position(i))] = i;
    for (int64_t p = 0; p < e.global; ++p) EXPECT_EQ(local_index(e, p), want[at(p)]);
  }
}

// --- Attention -----------------------------------------------------------------------------------

struct AttentionSizes {
  int64_t b, s, t, g, r, e, v;
  bool causal;
  double dropout = 0;
};

std::ostream& operator<<(std::ostream& out, const AttentionSizes& c) {
  return out << fmt::format("b{} s{} t{} g{} r{} e{} v{} causal {} dropout {}", c.b, c.s, c.t, c.g,
                            c.r, c.e, c.v, c.causal, c.dropout);
}

constexpr double kScale = 0.37;
constexpr int32_t kStep = 5;

struct AttentionResult {
  Numbers o, lse, dq, dk, dv;
};

// Forward and backward by formula: P = softmax(scale Q K^T), O = (P M) V, with M the mask.
AttentionResult naive_attention(const AttentionSizes& c, const Numbers& q, const Numbers& k,
                                const Numbers& v, const Numbers& dout) {
  const int64_t h = c.g * c.r;
  AttentionResult x{Numbers(at(c.b * c.s * h * c.v)), Numbers(at(c.b * c.s * h)), Numbers(q.size()),
                    Numbers(k.size()), Numbers(v.size())};
  const DropoutMask mask(testing::kRunSeed, "attention", kStep, c.dropout);
  for (int64_t b = 0; b < c.b; ++b) {
    for (int64_t head = 0; head < h; ++head) {
      for (int64_t s = 0; s < c.s; ++s) {
        const int64_t q_row = (b * c.s + s) * h + head;
        const auto kv_row = [&](int64_t t) { return (b * c.t + t) * c.g + head / c.r; };
        const int64_t seen = c.causal ? std::min(s + 1, c.t) : c.t;
        Numbers score(at(seen)), keep(at(seen), 1.0);
        double sum = 0;
        for (int64_t t = 0; t < seen; ++t) {
          for (int64_t e = 0; e < c.e; ++e) {
            score[at(t)] += kScale * q[at(q_row * c.e + e)] * k[at(kv_row(t) * c.e + e)];
          }
          sum += std::exp(score[at(t)]);
          const int64_t index = ((b * h + head) * c.s + s) * c.t + t;
          if (c.dropout > 0) keep[at(t)] = mask.at(static_cast<uint64_t>(index));
        }
        x.lse[at(q_row)] = std::log(sum);
        Numbers p(at(seen)), dp(at(seen));
        double delta = 0;
        for (int64_t t = 0; t < seen; ++t) {
          p[at(t)] = std::exp(score[at(t)]) / sum;
          for (int64_t j = 0; j < c.v; ++j) {
            const size_t o_at = at(q_row * c.v + j), v_at = at(kv_row(t) * c.v + j);
            x.o[o_at] += p[at(t)] * keep[at(t)] * v[v_at];
            x.dv[v_at] += p[at(t)] * keep[at(t)] * dout[o_at];
            dp[at(t)] += keep[at(t)] * dout[o_at] * v[v_at];
          }
          delta += p[at(t)] * dp[at(t)];
        }
        for (int64_t t = 0; t < seen; ++t) {
          const double ds = p[at(t)] * (dp[at(t)] - delta) * kScale;
          for (int64_t e = 0; e < c.e; ++e) {
            x.dq[at(q_row * c.e + e)] += ds * k[at(kv_row(t) * c.e + e)];
            x.dk[at(kv_row(t) * c.e + e)] += ds * q[at(q_row * c.e + e)];
          }
        }
      }
    }
  }
  return x;
}

class Attention : public ::testing::TestWithParam<AttentionSizes> {
 protected:
  void make(DType dtype) {
    const AttentionSizes& c = GetParam();
    q = random_tensor(dtype, {c.b, c.s, c.g * c.r, c.e}, 1, -2, 2);
    k = random_tensor(dtype, {c.b, c.t, c.g, c.e}, 2, -2, 2);
    v = random_tensor(dtype, {c.b, c.t, c.g, c.v}, 3, -2, 2);
    dout = random_tensor(dtype, {c.b, c.s, c.g * c.r, c.v}, 4);
    want = naive_attention(c, q.numbers, k.numbers, v.numbers, dout.numbers);
  }
  Attrs attrs() const {
    const AttentionSizes& c = GetParam();
    Attrs a = {{"causal", int64_t{c.causal}}, {"scale", kScale}, {"r", c.r}};
    if (c.dropout > 0) {
      a.set("dropout", c.dropout);
      a.set("name", std::string("attention"));
    }
    return a;
  }
  bool dropout() const { return GetParam().dropout > 0; }
  Application forward() const {
    std::vector<HostTensor> in = {q, k, v};
    if (dropout()) in.push_back({{DType::kI32, {}}, {kStep}});
    return application(ops::attention, in,
                       dropout() ? "bs(gr)E,bTgE,bTgV,->bs(gr)V,bs(gr)|b:indexed,s:indexed,"
                                   "g:indexed,r:indexed,T:indexed"
                                 : "",
                       attrs());
  }
  Application backward(const HostTensor& o, const HostTensor& lse) const {
    std::vector<HostTensor> in = {dout, q, k, v, o, lse};
    if (dropout()) in.push_back({{DType::kI32, {}}, {kStep}});
    return application(ops::attention_backward, in,
                       dropout() ? "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr),->bs(gr)E,btgE,btgV|"
                                   "b:indexed,s:indexed,g:indexed,r:indexed,t:indexed"
                                 : "",
                       attrs());
  }

  HostTensor q, k, v, dout;
  AttentionResult want;
};

TEST_P(Attention, MatchesTheFormula) {
  for (const DType dtype : kFloats) {
    make(dtype);
    const double tolerance = tolerance_of(dtype);
    for (const MemoryLayout layout : {MemoryLayout::kRowMajor, MemoryLayout::kPadded,
                                      MemoryLayout::kSpaced, MemoryLayout::kTransposed}) {
      const auto out = testing::run_op(forward(), {.layout = layout});
      expect_near(out[0].numbers, want.o, tolerance, "o");
      expect_near(out[1].numbers, want.lse, tolerance, "lse");
      const auto grads = testing::run_op(backward(out[0], out[1]), {.layout = layout});
      expect_near(grads[0].numbers, want.dq, tolerance * 10, "dq");
      expect_near(grads[1].numbers, want.dk, tolerance * 10, "dk");
      expect_near(grads[2].numbers, want.dv, tolerance * 10, "dv");
    }
  }
}

// Every other query: what a shard of a compound dimension may hold.
class AttentionOfEvenLength : public Attention {};

TEST_P(AttentionOfEvenLength, QueriesKnowTheirPositions) {
  const AttentionSizes& c = GetParam();
  make(DType::kF64);
  Application a = forward();
  const int64_t row = c.g * c.r * c.e, o_row = c.g * c.r * c.v, half = c.s / 2;
  HostTensor& queries = a.in[0];
  queries.type.shape[1] = half;
  queries.numbers.clear();
  Numbers o;
  for (int64_t b = 0; b < c.b; ++b) {
    for (int64_t s = 1; s < c.s; s += 2) {
      const auto from = q.numbers.begin() + (b * c.s + s) * row;
      queries.numbers.insert(queries.numbers.end(), from, from + row);
      const auto o_from = want.o.begin() + (b * c.s + s) * o_row;
      o.insert(o.end(), o_from, o_from + o_row);
    }
  }
  a.extents[at(a.signature->factor('s'))] = {half, c.s, {{half, 2, 1}}};
  expect_near(testing::run_op(a)[0].numbers, o, 1e-11, "o of the odd queries");
}

INSTANTIATE_TEST_SUITE_P(Sizes, Attention,
                         ::testing::Values(AttentionSizes{1, 1, 1, 1, 1, 1, 1, false},
                                           AttentionSizes{2, 7, 7, 3, 1, 5, 5, true},
                                           AttentionSizes{2, 7, 11, 2, 3, 5, 3, false},
                                           AttentionSizes{1, 10, 3, 2, 2, 4, 6, true},
                                           AttentionSizes{1, 3, 10, 1, 4, 7, 2, true},
                                           AttentionSizes{1, 150, 150, 2, 1, 16, 16,
                                                          true},  // several blocks
                                           AttentionSizes{1, 130, 70, 1, 2, 9, 8, false},
                                           AttentionSizes{2, 6, 9, 2, 3, 5, 3, false, 0.4},
                                           AttentionSizes{2, 34, 34, 3, 2, 4, 4, true, 0.2}));

INSTANTIATE_TEST_SUITE_P(Sizes, AttentionOfEvenLength,
                         ::testing::Values(AttentionSizes{2, 6, 6, 2, 2, 5, 3, true},
                                           AttentionSizes{1, 300, 150, 1, 1, 4, 4, true},
                                           AttentionSizes{2, 6, 9, 2, 3, 5, 3, false, 0.4},
                                           AttentionSizes{2, 34, 34, 3, 2, 4, 4, true, 0.2}));

// --- Norms ---------------------------------------------------------------------------------------

TEST(Norms, MatchTheFormulas) {
  constexpr double kEps = 1e-5;
  for (const DType dtype : kFloats) {
    const double tolerance = tolerance_of(dtype);
    for (const auto& [n, d] : {std::pair<int64_t, int64_t>{1, 1}, {3, 7}, {5, 33}, {2, 100}}) {
      const auto x = random_tensor(dtype, {n, d}, 1, -1, 3), dy = random_tensor(dtype, {n, d}, 2),
                 gamma = random_tensor(dtype, {d}, 3), beta = random_tensor(dtype, {d}, 4);
      for (const bool centred : {true, false}) {
        Numbers y(at(n * d)), mean(at(n)), rstd(at(n)), dx(at(n * d)), dgamma(at(d)), dbeta(at(d));
        for (int64_t i = 0; i < n; ++i) {
          const double* row = &x.numbers[at(i * d)];
          double m = 0, variance = 0;
          for (int64_t j = 0; j < d; ++j) m += centred ? row[j] / static_cast<double>(d) : 0;
          for (int64_t j = 0; j < d; ++j) variance += (row[j] - m) * (row[j] - m);
          const double r = 1 / std::sqrt(variance / static_cast<double>(d) + kEps);
          mean[at(i)] = m, rstd[at(i)] = r;
          // dx through the whole Jacobian: dh_k/dx_j = r (delta_jk - c/d) - h_k h_j r / d.
          for (int64_t j = 0; j < d; ++j) {
            const double h = (row[j] - m) * r;
            const double out = dy.numbers[at(i * d + j)];
            y[at(i * d + j)] = h * gamma.numbers[at(j)] + (centred ? beta.numbers[at(j)] : 0);
            dgamma[at(j)] += out * h;
            dbeta[at(j)] += out;
            for (int64_t l = 0; l < d; ++l) {
              const double other = (row[l] - m) * r;
              const double jacobian =
                  r * ((j == l) - (centred ? 1.0 : 0.0) / static_cast<double>(d) -
                       h * other / static_cast<double>(d));
              dx[at(i * d + j)] += dy.numbers[at(i * d + l)] * gamma.numbers[at(l)] * jacobian;
            }
          }
        }
        const Attrs eps = {{"eps", kEps}};
        if (centred) {
          const auto out = testing::run_op(application(ops::layer_norm, {x, gamma, beta}, "", eps));
          expect_near(out[0].numbers, y, tolerance, "layer_norm");
          expect_near(out[1].numbers, mean, tolerance, "mean");
          expect_near(out[2].numbers, rstd, tolerance, "rstd");
          const auto grads = testing::run_op(
              application(ops::layer_norm_backward, {dy, x, gamma, out[1], out[2]}));
          expect_near(grads[0].numbers, dx, tolerance * 10, "dx");
          expect_near(grads[1].numbers, dgamma, tolerance, "dgamma");
          expect_near(grads[2].numbers, dbeta, tolerance, "dbeta");
        } else {
          const auto out = testing::run_op(application(ops::rms_norm, {x, gamma}, "", eps));
          expect_near(out[0].numbers, y, tolerance, "rms_norm");
          expect_near(out[1].numbers, rstd, tolerance, "rstd");
          const auto grads =
              testing::run_op(application(ops::rms_norm_backward, {dy, x, gamma, out[1]}));
          expect_near(grads[0].numbers, dx, tolerance * 10, "dx");
          expect_near(grads[1].numbers, dgamma, tolerance, "dgamma");
        }
      }
    }
  }
}

// --- Softmax, rotary, embedding and loss ---------------------------------------------------------

TEST(Softmax, LargeScoresDoNotOverflow) {
  for (const DType dtype : kFloats) {
    const auto x = tensor(dtype, {1, 3}, {1000, 999, -1000});
    const double e = std::exp(-1.0);
    expect_near(testing::run_op(application(ops::softmax, {x}))[0].numbers,
                {1 / (1 + e), e / (1 + e), 0}, tolerance_of(dtype), "softmax");
  }
}

TEST(Rotary, TurnsPairsByPosition) {
  constexpr double kTheta = 50;
  const int64_t b = 2, s = 5, h = 3, e = 6;
  for (const DType dtype : kFloats) {
    const auto x = random_tensor(dtype, {b, s, h, e}, 1);
    const Attrs attrs = {{"theta", kTheta}};
    Application a = application(ops::rotary, {x}, "", attrs);
    // As the second shard of three: positions 5 to 9.
    for (const Extent& extent : {Extent{s, s, {}}, Extent{s, 3 * s, {{1, 3, 1}}}}) {
      a.extents[at(a.signature->factor('s'))] = extent;
      Numbers want(x.numbers.size());
      for (int64_t row = 0; row < b * s * h; ++row) {
        const double position = static_cast<double>(extent.position(row / h % s));
        for (int64_t i = 0; i < e / 2; ++i) {
          const double angle =
              position / std::pow(kTheta, 2 * static_cast<double>(i) / static_cast<double>(e));
          const double first = x.numbers[at(row * e + i)],
                       second = x.numbers[at(row * e + i + e / 2)];
          want[at(row * e + i)] = first * std::cos(angle) - second * std::sin(angle);
          want[at(row * e + i + e / 2)] = second * std::cos(angle) + first * std::sin(angle);
        }
      }
      const auto y = testing::run_op(a);
      expect_near(y[0].numbers, want, tolerance_of(dtype), "rotary");
      Application back = a;
      back.in = y;
      back.attrs.set("inverse", int64_t{1});
      expect_near(testing::run_op(back)[0].numbers, x.numbers, tolerance_of(dtype), "inverse");
    }
  }
}

TEST(Rotary, OddHeadIsTheUsersMistake) {
  Graph g;
  const Value x = add_data(g, "x", DType::kF32, {1, 2, 3, 5});
  EXPECT_THROW(g.add(ops::rotary, {x}, {}, {{"theta", 1e4}}), Error);
}

TEST(Embedding, ShardsFindOnlyTheirRows) {
  const int64_t rows = 12, width = 5;
  const auto table = random_tensor(DType::kF64, {rows, width}, 1);
  const auto ids = integers({3, 7}, 2, 0, rows);
  for (const Extent& extent : cut_extents(rows)) {
    Numbers local;
    for (int64_t i = 0; i < extent.local; ++i) {
      const auto from = table.numbers.begin() + extent.position(i) * width;
      local.insert(local.end(), from, from + width);
    }
    Application a =
        application(ops::embedding, {{{DType::kF64, {extent.local, width}}, local}, ids});
    a.extents[at(a.signature->factor('v'))] = extent;
    const std::vector<int64_t> mine = extent.positions();
    Numbers want;
    for (const double id : ids.numbers) {
      const bool here = std::count(mine.begin(), mine.end(), static_cast<int64_t>(id)) > 0;
      for (int64_t j = 0; j < width; ++j) {
        want.push_back(here ? table.numbers[at(static_cast<int64_t>(id) * width + j)] : 0);
      }
    }
    expect_near(testing::run_op(a)[0].numbers, want, 0, "embedding");
  }
}

TEST(Embedding, AnIndexBeyondTheTableIsTheUsersMistake) {
  const auto table = random_tensor(DType::kF32, {4, 2}, 1);
  for (const double id : {-1.0, 4.0}) {
    EXPECT_THROW(testing::run_op(application(ops::embedding, {table, {{DType::kI32, {1}}, {id}}})),
                 Error);
  }
}

TEST(CrossEntropy, MatchesTheFormula) {
  for (const DType dtype : kFloats) {
    const int64_t n = 5, classes = 37, ignore = 2;
    const auto logits = random_tensor(dtype, {n, classes}, 1, -30, 30);
    auto targets = integers({n}, 2, 0, classes);
    targets.numbers[1] = ignore;
    targets.numbers[3] = 36;
    const auto dloss = random_tensor(dtype, {n}, 3);
    Numbers loss(at(n)), lse(at(n)), dlogits(at(n * classes));
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0;
      const double* row = &logits.numbers[at(i * classes)];
      for (int64_t j = 0; j < classes; ++j) sum += std::exp(row[j]);
      lse[at(i)] = std::log(sum);
      const int64_t target = static_cast<int64_t>(targets.numbers[at(i)]);
      if (target == ignore) continue;
      loss[at(i)] = lse[at(i)] - row[target];
      for (int64_t j = 0; j < classes; ++j) {
        dlogits[at(i * classes + j)] =
            (std::exp(row[j]) / sum - (j == target)) * dloss.numbers[at(i)];
      }
    }
    const Attrs attrs = {{"ignore", ignore}};
    const auto out = testing::run_op(application(ops::cross_entropy, {logits, targets}, "", attrs));
    expect_near(out[0].numbers, loss, tolerance_of(dtype), "loss");
    expect_near(out[1].numbers, lse, tolerance_of(dtype), "lse");
    const auto grad =
        testing::run_op(application(ops::cross_entropy_backward, {logits, targets, out[1], dloss},
                                    "bv,b,b,b->bv|v:indexed", attrs));
    expect_near(grad[0].numbers, dlogits, tolerance_of(dtype), "dlogits");
  }
}

TEST(CrossEntropy, AnUnknownClassIsTheUsersMistake) {
  const auto logits = random_tensor(DType::kF32, {1, 4}, 1);
  for (const double target : {-1.0, 4.0}) {
    EXPECT_THROW(
        testing::run_op(application(ops::cross_entropy, {logits, {{DType::kI32, {1}}, {target}}})),
        Error);
  }
}

// --- Types ---------------------------------------------------------------------------------------

TEST(Types, StatisticsOfBf16AreF32) {
  Graph g;
  const Value x = add_data(g, "x", DType::kBF16, {2, 3, 8}),
              d = add_data(g, "d", DType::kBF16, {8});
  const auto norm = g.add(ops::layer_norm, {x, d, d}, {}, {{"eps", 1e-5}});
  EXPECT_EQ(to_string(g.type(norm[0])), "bf16[2, 3, 8]");
  EXPECT_EQ(to_string(g.type(norm[1])), "f32[2, 3]");
  EXPECT_EQ(to_string(g.type(norm[2])), "f32[2, 3]");
  EXPECT_EQ(g.type(g.add(ops::rms_norm, {x, d}, {}, {{"eps", 1e-5}})[1]).dtype, DType::kF32);
  const Value targets = add_data(g, "t", DType::kI32, {2, 3});
  EXPECT_EQ(g.type(g.add(ops::cross_entropy, {x, targets})[0]).dtype, DType::kF32);
  const Value q = add_data(g, "q", DType::kBF16, {2, 3, 4, 8});
  const auto attention = g.add(ops::attention, {q, q, q}, {},
                               {{"causal", int64_t{1}}, {"scale", 1.0}, {"r", int64_t{1}}});
  EXPECT_EQ(to_string(g.type(attention[0])), "bf16[2, 3, 4, 8]");
  EXPECT_EQ(to_string(g.type(attention[1])), "f32[2, 3, 4]");
}

// A split in bf16 gives the types that the op itself gives.
TEST(Types, SplitsKeepTheTypes) {
  Graph g;
  const Value x = add_data(g, "x", DType::kBF16, {2, 3, 8}),
              d = add_data(g, "d", DType::kBF16, {8}),
              q = add_data(g, "q", DType::kBF16, {2, 8, 4, 8}),
              ids = add_data(g, "t", DType::kI32, {2, 3}),
              row = add_data(g, "row", DType::kF32, {2, 3});
  const Attrs eps = {{"eps", 1e-5}};
  const auto check = [&](const OpDef& op, char letter, const std::vector<Value>& inputs,
                         Attrs attrs) {
    const std::vector<Value> outputs = g.add(op, inputs, {}, std::move(attrs));
    const Node node = g.node(g.value(outputs[0]).producer);
    const std::vector<TensorType> in = g.input_types(node);
    const OpCall call = Graph::call(node, in);
    const auto split = op.split({g, call, letter, 2, inputs});
    ASSERT_EQ(split.size(), outputs.size()) << op.name;
    for (size_t o = 0; o < split.size(); ++o) {
      EXPECT_EQ(to_string(g.type(split[o])), to_string(g.type(outputs[o]))) << op.name << o;
    }
  };
  check(ops::softmax, 'S', {x}, {});
  check(ops::softmax_backward, 'S', {x, x}, {});
  check(ops::layer_norm, 'D', {x, d, d}, eps);
  check(ops::layer_norm_backward, 'D', {x, x, d, row, row}, {});
  check(ops::rms_norm, 'D', {x, d}, eps);
  check(ops::rms_norm_backward, 'D', {x, x, d, row}, {});
  check(ops::cross_entropy, 'V', {x, ids}, {});
  check(ops::attention, 'T', {q, q, q},
        {{"causal", int64_t{1}}, {"scale", 1.0}, {"r", int64_t{1}}});
}

TEST(Costs, AttentionCountsItsProducts) {
  Graph g;
  const Value q = add_data(g, "q", DType::kF32, {2, 16, 6, 8}),
              k = add_data(g, "k", DType::kF32, {2, 32, 3, 8});
  const double full = 4.0 * 2 * 16 * 6 * 32 * 8;
  for (const int64_t causal : {0, 1}) {
    const auto o = g.add(ops::attention, {q, k, k}, {}, {{"causal", causal}, {"scale", 1.0}});
    const Node node = g.node(g.value(o[0]).producer);
    const auto in = g.input_types(node);
    EXPECT_EQ(ops::attention.flops(Graph::call(node, in)), causal ? full / 2 : full);
    const auto grads = g.add(ops::attention_backward, {o[0], q, k, k, o[0], o[1]}, {}, node.attrs);
    const Node backward = g.node(g.value(grads[0]).producer);
    const auto backward_in = g.input_types(backward);
    EXPECT_EQ(ops::attention_backward.flops(Graph::call(backward, backward_in)),
              2.5 * (causal ? full / 2 : full));
  }
}

TEST(Costs, SumsOfAttentionAreNoProducts) {
  Graph g;
  const Value x = add_data(g, "x", DType::kF32, {2, 16, 3, 8}),
              lse = add_data(g, "lse", DType::kF32, {2, 16, 3});
  const auto flops = [&](const std::string& sums, Attrs attrs) {
    attrs.set("scale", 1.0);
    attrs.set("r", int64_t{1});
    const auto out = g.add(ops::attention_backward, {x, x, x, x, x, lse},
                           "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)->bs(gr)E,btgE,btgV" + sums +
                               "|s:indexed,t:indexed",
                           attrs);
    const Node node = g.node(g.value(out[0]).producer);
    const auto in = g.input_types(node);
    return ops::attention_backward.flops(Graph::call(node, in));
  };
  EXPECT_EQ(flops(",(XgrE)", {{"sum", int64_t{1}}, {"X", int64_t{3}}}), flops("", {}));
}

}  // namespace
}  // namespace cleave
