// The text that a run trains on and the one it is measured on, and the batches of both. A batch is
// a function of the seed and the samples' numbers alone, so that every mesh trains on the same
// ones.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/batch.h"
#include "data/token_files.h"
#include "data/tokenizer.h"

namespace cleave {

// What the user names. docs/data.md says what the files may be.
struct DataSpec {
  std::string path{};        // one file, a pattern, or several with commas between
  std::string validation{};  // likewise; empty: the tail of the text
  std::string tokenizer{};   // what encodes a text; empty: bytes
};

class TokenData {
 public:
  // Opens the files: maps them, or encodes a text. The tail gets this share of the tokens, but at
  // least one sequence, unless that would leave too little to train on; 0: none. With
  // spec.validation there is no tail. Throws Error when a file or the tokenizer cannot be read, or
  // a text is too short for one sequence and the token after it.
  TokenData(const DataSpec& spec, int64_t sequence, double validation_share = 0.1);

  // The same texts in other sequences; nothing is read or encoded again.
  TokenData with_sequence(int64_t sequence) const;

  // Throws Error, saying which vocabulary would do, when the texts hold tokens that one of this
  // size does not. Of a text above 2^26 tokens it looks at that many, in 64 blocks; the batches
  // look at all of theirs.
  void check_vocab(int64_t vocab) const;

  // Samples first_sample, first_sample + 1, ... of the run: K batches of B are one batch of K * B,
  // and a run goes on where it stopped, whatever its batches were. An epoch takes every window of
  // `sequence` tokens once, in an order and from an offset of its own, drawn from the seed and the
  // epoch. Throws Error when a token is not in options.vocab.
  Batch training_batch(int64_t first_sample, const BatchOptions& options) const;
  // Batch 0, 1, ... below validation_batches. The windows are taken in the order of the text; the
  // last batch is filled up from the first window on.
  Batch validation_batch(int64_t index, const BatchOptions& options) const;
  int64_t validation_batches(int64_t batch) const;  // 0: there is nothing to validate on

  // Equal for equal texts (to train and to validate on) and tokenizers, wherever they lie and in
  // however many files: their lengths, and a hash of up to 2^16 tokens of each, in 64 blocks, and
  // of the tokenizer. A change between the blocks is not seen. One short word without spaces.
  std::string fingerprint() const;

  const std::string& path() const { return spec_.path; }
  TextFormat format() const { return text_->format; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  int64_t sequence() const { return sequence_; }
  // Tokens, and windows in an epoch and in the validation text.
  int64_t training_tokens() const { return training_tokens_; }
  int64_t validation_tokens() const { return validation_tokens_; }
  int64_t training_windows() const;
  int64_t validation_windows() const;
  // `count` tokens from `first` on, of the text to train or to validate on.
  std::vector<int32_t> training(int64_t first, int64_t count) const;
  std::vector<int32_t> validation(int64_t first, int64_t count) const;

 private:
  void divide(int64_t sequence);
  int64_t training_start(int64_t sample, uint64_t seed) const;

  DataSpec spec_;
  double validation_share_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const OpenText> text_, validation_text_;  // the same one: its tail
  int64_t sequence_ = 1;
  int64_t training_tokens_ = 0;                           // from the first one of text_ on
  int64_t validation_first_ = 0, validation_tokens_ = 0;  // of validation_text_
};

// A permutation of [0, n) as a function: where it takes `i`. It depends on (seed, stream) only.
int64_t permuted(int64_t i, int64_t n, uint64_t seed, uint64_t stream);

}  // namespace cleave
