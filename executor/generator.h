// Generates text: asks a model for the scores of one token after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "executor/cpu_runtime.h"
#include "executor/sampler.h"

namespace cleave {

// Runs the program of a next-token graph: data "tokens" [batch, length] and "position", output
// "scores" [batch, vocab]. Its weights are the runtime's sources.
class Scorer {
 public:
  explicit Scorer(Program program);

  int64_t batch() const { return tokens_[0]; }
  int64_t length() const { return tokens_[1]; }  // tokens that the model sees at once
  int64_t vocab() const { return vocab_; }
  CpuRuntime& runtime() { return runtime_; }

  // The scores, row-major [batch, vocab], of the token after the last of each text. Texts are
  // equally long; of longer ones than `length` the last tokens count. What is behind the texts'
  // end is filled with `padding`. REQUIRES: as many texts as the batch, none empty.
  std::vector<double> scores(std::span<const std::vector<int32_t>> texts, int32_t padding = 0);

 private:
  CpuRuntime runtime_;
  Shape tokens_;
  int64_t vocab_ = 0;
};

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t tokens = 200;  // at most, of each sample
  int32_t end = -1;      // the token that ends a sample; -1: none does
};

struct Generated {
  // What follows the prompt, a list a sample; without the token that ended it.
  std::vector<std::vector<int32_t>> samples;
  std::vector<bool> ended;  // by that token
  int64_t tokens = 0;       // drawn in all
  double seconds = 0;       // wall-clock, of scoring and drawing; not of making scorers
};

// A scorer whose length is at least so many tokens, or else the model's full length.
using ScorerFor = std::function<Scorer&(int64_t tokens)>;
// Receives each token as it is drawn.
using TokenSink = std::function<void(int64_t sample, int32_t token)>;

// Throws Error when the prompt is empty, or has tokens that the model does not know.
void check_prompt(std::span<const int32_t> prompt, int64_t vocab);

// Continues the prompt, as many samples as the scorers' batch. When a text is longer than the model
// sees, the model sees its end. Throws Error when the prompt is empty or has tokens that the model
// does not know, or when scores depend on what comes after a text's end: such a model is not for
// generating.
Generated generate(const ScorerFor& scorer_for, std::span<const int32_t> prompt,
                   const GenerateOptions& options, const TokenSink& sink = {});

}  // namespace cleave
