// Tokens from a file, one a byte, and the batches that a model learns from. A batch is a function
// of the seed and the step alone, so that every mesh trains on the same numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace cleave {

// What the model is to predict.
enum class Targets : uint8_t {
  kNextToken,     // targets[i] = tokens[i + 1]
  kMaskedTokens,  // BERT's: 15 % of the positions are chosen, and the others' targets are -100. Of
                  // those chosen 80 % are masked, 10 % become another byte, 10 % stay
};

inline constexpr int32_t kNoTarget = -100;

// Row-major [batch, sequence].
struct Batch {
  std::vector<int32_t> tokens, targets;
};

struct BatchOptions {
  int64_t batch = 1;    // sequences
  int64_t vocab = 256;  // masked tokens are 256 where the vocabulary has it, else the last token
  Targets targets = Targets::kNextToken;
  uint64_t seed = 0;
};

// A file in memory, seen as two texts: the first part to train on, the tail to validate on.
class TokenData {
 public:
  // Maps the file. The tail gets this share of the bytes, but at least one sequence, unless that
  // would leave too little to train on; 0: none. Throws Error when the file cannot be read, or is
  // too short for one sequence and the token after it.
  TokenData(const std::string& path, int64_t sequence, double validation_share = 0.1);

  // Throws Error when the file holds bytes that a vocabulary of this size does not.
  void check_vocab(int64_t vocab) const;

  // The batch of step 0, 1, ... An epoch takes every window of `sequence` tokens once, in an order
  // and from an offset of its own.
  Batch training_batch(int64_t step, const BatchOptions& options) const;
  // Batch 0, 1, ... below validation_batches. The windows are taken in the order of the file; the
  // last batch is filled up from the first window on.
  Batch validation_batch(int64_t index, const BatchOptions& options) const;
  int64_t validation_batches(int64_t batch) const;  // 0: there is nothing to validate on

  const std::string& path() const { return path_; }
  int64_t sequence() const { return sequence_; }
  std::span<const uint8_t> training() const { return bytes().first(training_bytes_); }
  std::span<const uint8_t> validation() const { return bytes().subspan(training_bytes_); }
  // Windows in an epoch, and in the tail.
  int64_t training_windows() const;
  int64_t validation_windows() const;

 private:
  struct Mapping;
  std::span<const uint8_t> bytes() const;
  int64_t training_start(int64_t sample, uint64_t seed) const;

  std::string path_;
  int64_t sequence_;
  std::shared_ptr<const Mapping> mapping_;
  size_t training_bytes_ = 0;
};

// A permutation of [0, n) as a function: where it takes `i`. It depends on (seed, stream) only.
int64_t permuted(int64_t i, int64_t n, uint64_t seed, uint64_t stream);

}  // namespace cleave
