// The sampler: exact probabilities, draws that follow them, and draws that depend on the seed, the
// sample and the position alone.
#include "executor/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "graph/error.h"
#include "graph/philox.h"

namespace cleave {
namespace {

std::vector<double> random_scores(size_t count, uint64_t seed, double size = 2) {
  std::vector<double> scores;
  for (size_t i = 0; i < count; ++i) {
    scores.push_back(size * normal_at(seed, stream_of("scores"), i));
  }
  return scores;
}

// By the definition: sort everything, cut, normalise.
std::vector<double> expected(const std::vector<double>& scores, const SamplingOptions& o) {
  const size_t n = o.vocab > 0 ? static_cast<size_t>(o.vocab) : scores.size();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  if (o.top_k > 0) order.resize(std::min(n, static_cast<size_t>(o.top_k)));
  long double sum = 0;
  std::vector<double> p(scores.size(), 0);
  for (size_t t : order) sum += std::exp(static_cast<long double>(scores[t]) / o.temperature);
  for (size_t t : order) {
    p[t] = static_cast<double>(std::exp(static_cast<long double>(scores[t]) / o.temperature) / sum);
  }
  double before = 0;
  for (size_t t : order) {
    const double mine = p[t];
    if (before >= o.top_p) p[t] = 0;
    before += mine;
  }
  const double kept = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= kept;
  return p;
}

std::vector<SamplingOptions> all_options() {
  std::vector<SamplingOptions> all;
  for (const double temperature : {0.3, 0.8, 1.0, 5.0}) {
    for (const int64_t k : {0, 1, 3, 12, 100}) {
      for (const double p : {1.0, 0.9, 0.4, 1e-9}) {
        for (const int64_t vocab : {0, 20}) {
          all.push_back({.temperature = temperature, .top_k = k, .top_p = p, .vocab = vocab});
        }
      }
    }
  }
  return all;
}

TEST(Sampler, ProbabilitiesAreThoseOfTheDefinition) {
  for (const SamplingOptions& o : all_options()) {
    const std::vector<double> scores = random_scores(24, 1);
    const std::vector<double> p = probabilities(scores, o), want = expected(scores, o);
    for (size_t t = 0; t < p.size(); ++t) EXPECT_NEAR(p[t], want[t], 1e-12) << t;
    EXPECT_NEAR(std::accumulate(p.begin(), p.end(), 0.0), 1, 1e-12);
  }
}

// Pearson's statistic of 20,000 draws against the exact probabilities. A test that draws rightly
// exceeds the bound, the mean and five deviations, about once in 10^5.
TEST(Sampler, DrawsFollowTheProbabilities) {
  constexpr int kDraws = 20000;
  for (SamplingOptions o : all_options()) {
    o.seed = 7;
    const std::vector<double> scores = random_scores(24, 2);
    const std::vector<double> p = probabilities(scores, o);
    std::vector<int> counts(p.size(), 0);
    for (int i = 0; i < kDraws; ++i) {
      const int32_t t = next_token(scores, o, /*sample=*/i % 4, /*position=*/i / 4);
      ASSERT_GE(t, 0);
      ASSERT_LT(static_cast<size_t>(t), p.size());
      ++counts[static_cast<size_t>(t)];
    }
    double chi_square = 0, cells = 0, rare = 0, rare_expected = 0;
    for (size_t t = 0; t < p.size(); ++t) {
      if (p[t] == 0) {
        EXPECT_EQ(counts[t], 0) << "token " << t << " is outside the set";
        continue;
      }
      const double want = kDraws * p[t];
      if (want < 5) {  // together one cell
        rare += counts[t], rare_expected += want;
        continue;
      }
      chi_square += (counts[t] - want) * (counts[t] - want) / want;
      ++cells;
    }
    if (rare_expected > 1) {
      chi_square += (rare - rare_expected) * (rare - rare_expected) / rare_expected;
      ++cells;
    }
    const double freedom = std::max(cells - 1, 1.0);
    EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom) + 5)
        << o.temperature << " " << o.top_k << " " << o.top_p << " " << o.vocab;
  }
}

TEST(Sampler, TemperatureZeroTakesTheHighest) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::vector<double> scores = random_scores(33, seed);
    const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
    const SamplingOptions greedy{.temperature = 0, .top_k = 5, .top_p = 0.5, .seed = seed};
    EXPECT_EQ(next_token(scores, greedy, 0, 3), best);
    scores.push_back(scores[static_cast<size_t>(best)]);  // an equal: the first wins
    EXPECT_EQ(next_token(scores, greedy, 1, 4), best);
    // A tiny temperature comes to the same.
    EXPECT_EQ(next_token(scores, {.temperature = 1e-9, .top_k = 1}, 0, 3), best);
  }
}

TEST(Sampler, DrawsDependOnSeedSampleAndPositionAlone) {
  const std::vector<double> scores = random_scores(1000, 3, 0.5);
  const auto text = [&](uint64_t seed, int64_t sample) {
    std::vector<int32_t> tokens;
    const SamplingOptions o{.temperature = 1, .seed = seed};
    for (int64_t i = 0; i < 20; ++i) tokens.push_back(next_token(scores, o, sample, i));
    return tokens;
  };
  EXPECT_EQ(text(1, 0), text(1, 0));
  EXPECT_NE(text(1, 0), text(2, 0));
  EXPECT_NE(text(1, 0), text(1, 1));
  std::vector<int32_t> first = text(1, 0);
  std::sort(first.begin(), first.end());
  EXPECT_GT(std::unique(first.begin(), first.end()) - first.begin(), 10);
  // Scores that differ by rounding draw the same tokens, all but always.
  std::vector<double> rounded = scores;
  for (double& x : rounded) x = static_cast<double>(static_cast<float>(x));
  int other = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    const SamplingOptions o{.temperature = 1, .seed = 9};
    other += next_token(scores, o, 0, i) != next_token(rounded, o, 0, i);
  }
  EXPECT_LE(other, 1);
}

TEST(Sampler, TokensBeyondTheVocabularyAreNeverDrawn) {
  std::vector<double> scores(40, 0.0);
  for (size_t t = 30; t < 40; ++t) scores[t] = 50;  // padding that was never trained
  for (const double temperature : {0.0, 1.0}) {
    for (int64_t i = 0; i < 500; ++i) {
      EXPECT_LT(next_token(scores, {.temperature = temperature, .vocab = 30}, 0, i), 30);
    }
  }
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Sampler, RefusesWhatMakesNoSense) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double t : {-0.1, nan, infinity}) {
    EXPECT_NE(error_of([&] { check(SamplingOptions{.temperature = t}); }).find("--temperature"),
              std::string::npos);
  }
  EXPECT_NE(error_of([] { check(SamplingOptions{.top_k = -1}); }).find("--top-k -1"),
            std::string::npos);
  for (const double p : {0.0, -1.0, 1.5, nan}) {
    EXPECT_NE(error_of([&] { check(SamplingOptions{.top_p = p}); }).find("--top-p"),
              std::string::npos);
  }
  EXPECT_NO_THROW(check(SamplingOptions{.temperature = 0, .top_k = 1, .top_p = 1}));
  for (const double x : {nan, infinity, -infinity}) {
    const std::vector<double> scores = {0, 1, x};
    EXPECT_NE(error_of([&] { next_token(scores, {}, 0, 0); }).find("the score of token 2"),
              std::string::npos);
    EXPECT_EQ(error_of([&] { next_token(scores, {.vocab = 2}, 0, 0); }), "no error");
  }
}

}  // namespace
}  // namespace cleave
