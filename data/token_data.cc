#include "data/token_data.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "graph/error.h"
#include "graph/philox.h"

namespace cleave {
namespace {

constexpr uint64_t kOrder = stream_of("data.order"), kOffset = stream_of("data.offset"),
                   kTrainingMask = stream_of("data.mask"),
                   kValidationMask = stream_of("data.validation_mask");

void expect_length(const std::string& path, const OpenText& text, int64_t sequence) {
  const int64_t tokens = text.tokens.size();
  if (tokens > sequence) return;
  fail(
      "the data '{}' have {} {}, but one sequence of {} needs {}; take more data, or --set "
      "sequence={}",
      path, tokens, text.format == TextFormat::kBytes ? "bytes" : "tokens", sequence, sequence + 1,
      std::max<int64_t>(tokens - 1, 1));
}

}  // namespace

TokenData::TokenData(const DataSpec& spec, int64_t sequence, double validation_share)
    : spec_(spec),
      validation_share_(validation_share),
      tokenizer_(load_tokenizer(spec.tokenizer)),
      text_(std::make_shared<const OpenText>(open_text(spec.path, *tokenizer_))) {
  CLEAVE_ASSERT(validation_share >= 0 && validation_share < 1, "{} to validate on",
                validation_share);
  validation_text_ = text_;
  if (!spec.validation.empty()) {
    validation_text_ = std::make_shared<const OpenText>(open_text(spec.validation, *tokenizer_));
    const bool bytes = text_->format == TextFormat::kBytes;
    if (bytes != (validation_text_->format == TextFormat::kBytes)) {
      const std::string &b = bytes ? spec.path : spec.validation,
                        &t = bytes ? spec.validation : spec.path;
      fail("the data '{}' are bytes, but '{}' are tokens; name the --tokenizer that made them", b,
           t);
    }
  }
  divide(sequence);
}

TokenData TokenData::with_sequence(int64_t sequence) const {
  TokenData other = *this;
  other.divide(sequence);
  return other;
}

void TokenData::divide(int64_t sequence) {
  CLEAVE_ASSERT(sequence > 0, "sequences of {}", sequence);
  sequence_ = sequence;
  expect_length(spec_.path, *text_, sequence);
  training_tokens_ = text_->tokens.size();
  if (validation_text_ != text_) {
    expect_length(spec_.validation, *validation_text_, sequence);
    validation_first_ = 0;
    validation_tokens_ = validation_text_->tokens.size();
    return;
  }
  const int64_t total = training_tokens_, least = sequence + 1;
  int64_t tail = 0;
  if (validation_share_ > 0 && total >= 2 * least) {
    tail = static_cast<int64_t>(std::llround(validation_share_ * static_cast<double>(total)));
    tail = std::clamp(tail, least, total - least);
  }
  training_tokens_ = validation_first_ = total - tail;
  validation_tokens_ = tail;
}

namespace {

// Parts of a text that are looked at in place of the whole: all of it when it is short, else equal
// blocks, the first and the last at its ends.
struct Block {
  int64_t first = 0, count = 0;
};

std::vector<Block> sampled(int64_t tokens, int64_t most) {
  constexpr int64_t kBlocks = 64;
  if (tokens <= most) return {{0, tokens}};
  std::vector<Block> blocks;
  const int64_t count = most / kBlocks;
  for (int64_t b = 0; b < kBlocks; ++b) {
    blocks.push_back({b * (tokens - count) / (kBlocks - 1), count});
  }
  return blocks;
}

// "token 70000 in 'FILE' at byte 1040": as the user finds it.
std::string describe(const OpenText& text, const StrangeToken& strange) {
  if (text.format == TextFormat::kEncoded) {
    return fmt::format("token {} of the tokenizer's", strange.token);
  }
  return fmt::format("{} {} in {}", text.format == TextFormat::kBytes ? "byte" : "token",
                     strange.token, text.tokens.place(strange.index));
}

// `largest`: of the tokens that were looked at.
[[noreturn]] void refuse(const OpenText& text, const StrangeToken& strange, int64_t vocab,
                         int64_t largest) {
  const int64_t enough = std::max({text.vocab, largest + 1, strange.token + 1});
  if (strange.token < 0 || enough > int64_t{INT32_MAX}) {
    fail("the data hold {}, which no vocabulary has; the tokens are damaged or of another type",
         describe(text, strange));
  }
  fail("the data hold {}, but the model knows tokens 0 to {}; --set vocab={} {}",
       describe(text, strange), vocab - 1, enough,
       text.vocab > 0 ? "takes any such data" : "or more takes them");
}

void check(const OpenText& text, int64_t vocab) {
  // Bytes and encoded texts cannot hold more than their vocabulary.
  const bool bounded = text.format == TextFormat::kBytes || text.format == TextFormat::kEncoded;
  if (bounded && vocab >= text.vocab) return;
  const std::vector<Block> blocks = sampled(text.tokens.size(), int64_t{1} << 26);
  for (const Block& b : blocks) {
    const std::optional<StrangeToken> strange = text.tokens.first_outside(b.first, b.count, vocab);
    if (!strange) continue;
    int64_t largest = 0;
    for (const Block& all : blocks) {
      largest = std::max(largest, text.tokens.largest(all.first, all.count));
    }
    refuse(text, *strange, vocab, largest);
  }
}

uint64_t hash_of(const TokenText& text) {
  std::vector<int32_t> tokens;
  for (const Block& b : sampled(text.size(), int64_t{1} << 16)) {
    const size_t before = tokens.size();
    tokens.resize(before + static_cast<size_t>(b.count));
    text.read(b.first, std::span(tokens).subspan(before));
  }
  return stream_of({reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(int32_t)});
}

// Windows of tokens that were found in the vocabulary.
std::vector<int32_t> window(const OpenText& text, int64_t first, int64_t count, int64_t vocab) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  text.tokens.read(first, tokens);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab) continue;
    const int64_t index = first + static_cast<int64_t>(i);
    refuse(text, *text.tokens.first_outside(index, 1, vocab), vocab, 0);
  }
  return tokens;
}

}  // namespace

void TokenData::check_vocab(int64_t vocab) const {
  check(*text_, vocab);
  if (validation_text_ != text_) check(*validation_text_, vocab);
}

std::string TokenData::fingerprint() const {
  const bool apart = validation_text_ != text_;
  const std::string hashes = fmt::format(
      "{:x} {:x} {:x}", hash_of(text_->tokens), apart ? hash_of(validation_text_->tokens) : 0,
      text_->format == TextFormat::kEncoded ? tokenizer_->fingerprint() : 0);
  return fmt::format("{}{}{}-{:016x}", text_->tokens.size(), apart ? "+" : "",
                     apart ? std::to_string(validation_text_->tokens.size()) : "",
                     stream_of(hashes));
}

// With more than one window, one is given up for the offset's freedom.
int64_t TokenData::training_windows() const {
  return std::max<int64_t>((training_tokens_ - 1) / sequence_ - 1, 1);
}

int64_t TokenData::validation_windows() const {
  return std::max<int64_t>((validation_tokens_ - 1) / sequence_, 0);
}

int64_t TokenData::validation_batches(int64_t batch) const {
  return (validation_windows() + batch - 1) / batch;
}

std::vector<int32_t> TokenData::training(int64_t first, int64_t count) const {
  CLEAVE_ASSERT(first >= 0 && count <= training_tokens_ - first, "{} + {} of {}", first, count,
                training_tokens_);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  text_->tokens.read(first, tokens);
  return tokens;
}

std::vector<int32_t> TokenData::validation(int64_t first, int64_t count) const {
  CLEAVE_ASSERT(first >= 0 && count <= validation_tokens_ - first, "{} + {} of {}", first, count,
                validation_tokens_);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  validation_text_->tokens.read(validation_first_ + first, tokens);
  return tokens;
}

// A Feistel network on the smallest even number of bits that holds n, walked until it lands below
// n.
int64_t permuted(int64_t i, int64_t n, uint64_t seed, uint64_t stream) {
  int half = 1;
  while ((int64_t{1} << (2 * half)) < n) ++half;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  auto x = static_cast<uint64_t>(i);
  do {
    for (uint32_t round = 0; round < 6; ++round) {
      const uint64_t left = x >> half, right = x & mask;
      const PhiloxBlock draw =
          philox({static_cast<uint32_t>(right), static_cast<uint32_t>(right >> 32) ^ (round << 24),
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                 seed);
      x = (right << half) | (left ^ (draw[0] & mask));
    }
  } while (x >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(x);
}

int64_t TokenData::training_start(int64_t sample, uint64_t seed) const {
  const int64_t windows = training_windows();
  const int64_t epoch = sample / windows;
  const int64_t freedom = training_tokens_ - 1 - windows * sequence_;
  const auto offset = static_cast<int64_t>(uniform_at(seed, kOffset, static_cast<uint64_t>(epoch)) *
                                           static_cast<double>(freedom + 1));
  const uint64_t order = kOrder ^ (static_cast<uint64_t>(epoch) * 0x9E3779B97F4A7C15ULL);
  return offset + permuted(sample % windows, windows, seed, order) * sequence_;
}

Batch TokenData::training_batch(int64_t first_sample, const BatchOptions& options) const {
  CLEAVE_ASSERT(first_sample >= 0, "sample {}", first_sample);
  Batch batch;
  for (int64_t sample = first_sample; sample < first_sample + options.batch; ++sample) {
    const std::vector<int32_t> text =
        window(*text_, training_start(sample, options.seed), sequence_ + 1, options.vocab);
    add_row(batch, {text, sample}, options, text_->vocab, kTrainingMask);
  }
  return batch;
}

Batch TokenData::validation_batch(int64_t index, const BatchOptions& options) const {
  Batch batch;
  for (int64_t i = 0; i < options.batch; ++i) {
    const int64_t number = (index * options.batch + i) % validation_windows();
    const std::vector<int32_t> text = window(
        *validation_text_, validation_first_ + number * sequence_, sequence_ + 1, options.vocab);
    add_row(batch, {text, number}, options, validation_text_->vocab, kValidationMask);
  }
  return batch;
}

}  // namespace cleave
