#include "executor/generator.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "graph/error.h"

namespace cleave {
namespace {

TensorType type_of(const Program& program, TensorId t) {
  const ProgramTensor& tensor = program.tensor(t);
  return {tensor.dtype, tensor.layout.global_shape()};
}

// Whether other tokens behind the texts' end give the same scores.
void check_causal(Scorer& scorer, std::span<const std::vector<int32_t>> texts,
                  const std::vector<double>& scores, int32_t padding) {
  const std::vector<double> others = scorer.scores(texts, padding);
  double size = 0, difference = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    size = std::max(size, std::abs(scores[i]));
    difference = std::max(difference, std::abs(scores[i] - others[i]));
  }
  if (difference <= 1e-3 * size) return;
  fail(
      "the model's scores at one token depend on the tokens after it (by {:.2g} of {:.2g}): it "
      "looks both ways, and cannot generate text",
      difference, size);
}

}  // namespace

void check_prompt(std::span<const int32_t> prompt, int64_t vocab) {
  if (prompt.empty()) fail("the prompt is empty: write at least one token to continue from");
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] >= 0 && prompt[i] < vocab) continue;
    fail("token {} of the prompt is {}, but the model knows tokens 0 to {}", i + 1, prompt[i],
         vocab - 1);
  }
}

Scorer::Scorer(Program program) : runtime_(std::move(program)) {
  const Program& p = runtime_.program();
  tokens_ = runtime_.source_type("tokens").shape;
  CLEAVE_ASSERT(tokens_.size() == 2 && p.outputs.size() == 1, "not a program of scores");
  vocab_ = type_of(p, p.outputs[0].tensor).shape.at(1);
}

std::vector<double> Scorer::scores(std::span<const std::vector<int32_t>> texts, int32_t padding) {
  CLEAVE_ASSERT(static_cast<int64_t>(texts.size()) == batch(), "{} texts for a batch of {}",
                texts.size(), batch());
  const size_t length = static_cast<size_t>(tokens_[1]);
  std::vector<int32_t> window;
  window.reserve(texts.size() * length);
  for (const std::vector<int32_t>& text : texts) {
    CLEAVE_ASSERT(!text.empty() && text.size() == texts[0].size(), "texts of different lengths");
    const size_t seen = std::min(text.size(), length);
    window.insert(window.end(), text.end() - static_cast<int64_t>(seen), text.end());
    window.insert(window.end(), length - seen, padding);
  }
  const auto position = static_cast<int32_t>(std::min(texts[0].size(), length) - 1);
  runtime_.set_data("tokens", std::as_bytes(std::span(window)));
  runtime_.set_data("position", std::as_bytes(std::span(&position, 1)));
  return std::move(runtime_.step().outputs[0].values);
}

Generated generate(const ScorerFor& scorer_for, std::span<const int32_t> prompt,
                   const GenerateOptions& options, const TokenSink& sink) {
  using Clock = std::chrono::steady_clock;
  check(options.sampling);
  Generated result;
  std::vector<std::vector<int32_t>> texts;
  bool causal = false;  // known
  for (int64_t i = 0; i < options.tokens; ++i) {
    Scorer& scorer = scorer_for(static_cast<int64_t>(prompt.size()) + i);
    const auto begin = Clock::now();
    if (i == 0) {
      check_prompt(prompt, scorer.vocab());
      const auto batch = static_cast<size_t>(scorer.batch());
      texts.assign(batch, {prompt.begin(), prompt.end()});
      result.samples.resize(batch);
      result.ended.resize(batch, false);
    }
    const std::vector<double> scores = scorer.scores(texts);
    if (!causal && static_cast<int64_t>(texts[0].size()) < scorer.length()) {
      const int64_t known = options.sampling.vocab > 0 ? options.sampling.vocab : scorer.vocab();
      check_causal(scorer, texts, scores, static_cast<int32_t>(known - 1));
      causal = true;
    }
    for (size_t s = 0; s < texts.size(); ++s) {
      if (result.ended[s]) {
        texts[s].push_back(options.end);
        continue;
      }
      const auto sample = static_cast<int64_t>(s);
      const std::span<const double> row(scores.data() + sample * scorer.vocab(),
                                        static_cast<size_t>(scorer.vocab()));
      const int32_t token =
          next_token(row, options.sampling, sample, static_cast<int64_t>(texts[s].size()));
      texts[s].push_back(token);
      ++result.tokens;
      if (token == options.end) {
        result.ended[s] = true;
        continue;
      }
      result.samples[s].push_back(token);
      if (sink) sink(sample, token);
    }
    result.seconds += std::chrono::duration<double>(Clock::now() - begin).count();
    if (std::find(result.ended.begin(), result.ended.end(), false) == result.ended.end()) break;
  }
  return result;
}

}  // namespace cleave
