#include "executor/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "graph/error.h"
#include "graph/philox.h"

namespace cleave {
namespace {

// Uniform in [0, 1) with 53 bits: a token of a vocabulary of 100,000 may be less likely than 2^-24.
double draw(uint64_t seed, int64_t sample, int64_t position) {
  const PhiloxBlock bits = philox_block(seed, stream_of("generate") + static_cast<uint64_t>(sample),
                                        static_cast<uint64_t>(position));
  const uint64_t whole = (uint64_t{bits[0]} << 32 | bits[1]) >> 11;
  return static_cast<double>(whole) * 0x1p-53;
}

// The first `count` tokens by falling score.
std::vector<int32_t> highest(std::span<const double> scores, size_t count) {
  std::vector<int32_t> tokens(scores.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto score = [&](int32_t t) { return scores[static_cast<size_t>(t)]; };
  std::partial_sort(
      tokens.begin(), tokens.begin() + static_cast<int64_t>(count), tokens.end(),
      [&](int32_t a, int32_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
  tokens.resize(count);
  return tokens;
}

std::span<const double> of_vocabulary(std::span<const double> scores, int64_t vocab) {
  if (vocab > 0 && static_cast<size_t>(vocab) < scores.size()) {
    scores = scores.first(static_cast<size_t>(vocab));
  }
  CLEAVE_ASSERT(!scores.empty(), "no scores to draw from");
  for (size_t t = 0; t < scores.size(); ++t) {
    if (std::isfinite(scores[t])) continue;
    fail("the score of token {} is {}: the weights are of a run that failed, or damaged", t,
         scores[t]);
  }
  return scores;
}

}  // namespace

void check(const SamplingOptions& o) {
  if (!(o.temperature >= 0) || !std::isfinite(o.temperature)) {
    fail("--temperature {}: write 0 (always the likeliest token) or more", o.temperature);
  }
  if (o.top_k < 0) fail("--top-k {}: write at least 1, or leave it out", o.top_k);
  if (!(o.top_p > 0 && o.top_p <= 1)) fail("--top-p {}: write a number above 0, up to 1", o.top_p);
}

std::vector<double> probabilities(std::span<const double> all, const SamplingOptions& o) {
  const std::span<const double> scores = of_vocabulary(all, o.vocab);
  std::vector<double> result(all.size(), 0.0);
  const auto top = std::max_element(scores.begin(), scores.end());
  if (o.temperature == 0) {
    result[static_cast<size_t>(top - scores.begin())] = 1;
    return result;
  }
  const auto weigh = [&](int32_t t) {
    return result[static_cast<size_t>(t)] =
               std::exp((scores[static_cast<size_t>(t)] - *top) / o.temperature);
  };
  const bool by_rank = (o.top_k > 0 && static_cast<size_t>(o.top_k) < scores.size()) || o.top_p < 1;
  double sum = 0;
  if (by_rank) {
    const size_t k = o.top_k > 0 ? static_cast<size_t>(o.top_k) : scores.size();
    const std::vector<int32_t> ranked = highest(scores, std::min(k, scores.size()));
    for (const int32_t t : ranked) sum += weigh(t);
    double kept = 0;
    for (const int32_t t : ranked) {
      double& p = result[static_cast<size_t>(t)];
      if (kept >= o.top_p * sum) {
        p = 0;
      } else {
        kept += p;
      }
    }
    sum = kept;
  } else {
    for (size_t t = 0; t < scores.size(); ++t) sum += weigh(static_cast<int32_t>(t));
  }
  for (double& p : result) p /= sum;
  return result;
}

int32_t next_token(std::span<const double> scores, const SamplingOptions& options, int64_t sample,
                   int64_t position) {
  const std::vector<double> p = probabilities(scores, options);
  // In the order of the tokens, not of their scores: rounding may swap near equals.
  double left = draw(options.seed, sample, position);
  int32_t last = 0;
  for (size_t t = 0; t < p.size(); ++t) {
    if (p[t] == 0) continue;
    last = static_cast<int32_t>(t);
    left -= p[t];
    if (left < 0) break;
  }
  return last;  // the last one possible, when the sum is below 1 by rounding
}

}  // namespace cleave
