// What a model learns from in one step, made of sequences of a text.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cleave {

// What the model is to predict.
enum class Targets : uint8_t {
  kNextToken,     // targets[i] = tokens[i + 1]
  kMaskedTokens,  // BERT's: 15 % of the positions are chosen, and the others' targets are -100. Of
                  // those chosen 80 % are masked, 10 % become another token, 10 % stay
};

inline constexpr int32_t kNoTarget = -100;

// Row-major [batch, sequence].
struct Batch {
  std::vector<int32_t> tokens, targets;
};

struct BatchOptions {
  int64_t batch = 1;    // sequences
  int64_t vocab = 256;  // the model's
  Targets targets = Targets::kNextToken;
  uint64_t seed = 0;
  // The token that stands for a masked one. Below 0: the first that the data cannot hold (256 for
  // bytes) where the vocabulary has it, else the vocabulary's last.
  int64_t mask_token = -1;
};

// A sequence of a batch.
struct BatchRow {
  std::span<const int32_t> text;  // sequence + 1 tokens
  int64_t sample = 0;             // its number in the run: what its masks are drawn by
};

// Appends the row and its targets. Masks depend on (seed, stream, sample) and the row alone; every
// row has a target. `data_vocab`: the tokens that the data can hold; 0: any of the vocabulary.
void add_row(Batch& batch, const BatchRow& row, const BatchOptions& options, int64_t data_vocab,
             uint64_t mask_stream);

}  // namespace cleave
