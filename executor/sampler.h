// Draws the next token from a model's scores.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cleave {

struct SamplingOptions {
  double temperature = 0.8;  // scores are divided by it; 0: always the highest score
  int64_t top_k = 0;         // only so many of the highest scores; 0: all
  double top_p = 1;          // only the likeliest tokens that together reach this probability
  int64_t vocab = 0;         // only tokens below this one; 0: all that have a score
  uint64_t seed = 0;
};

// Throws Error on numbers that make no sense, in the words of the command's options.
void check(const SamplingOptions& options);

// The probability of each token, as many as scores. Of equal scores the first tokens come first.
// Throws Error when a score is not finite.
std::vector<double> probabilities(std::span<const double> scores, const SamplingOptions& options);

// The token drawn for this place in this sample's text. It depends on the arguments alone, so that
// every mesh draws alike, up to the rounding of the scores.
int32_t next_token(std::span<const double> scores, const SamplingOptions& options, int64_t sample,
                   int64_t position);

}  // namespace cleave
