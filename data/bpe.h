// Byte-pair encoding: a piece of text begins as one token a byte, and the pair of neighbours whose
// merge is the strongest becomes one token, the leftmost of equals first, until no pair has a
// merge.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/pre_tokenizer.h"

namespace cleave {

struct BpeToken {
  std::string bytes;      // empty: no token has this id
  bool is_piece = false;  // may stand for a piece of text that is spelled like it
};

struct BpeMerge {
  int32_t left = 0, right = 0, result = 0;
};

// A token that is looked for in the text before all else, such as <|endoftext|>.
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool normalized = false;  // looked for after those that are not
};

// Everything that a byte-level tokenizer's files say.
struct BpeDefinition {
  std::string name;              // the path, for messages
  std::vector<BpeToken> tokens;  // by id
  std::array<int32_t, 256> byte_tokens{};
  std::vector<BpeMerge> merges;  // the strongest first; of equal pairs the last one counts
  std::vector<AddedToken> added;
  SplitRule split = SplitRule::kGpt2;
  bool whole_pieces = false;  // a piece that is a token is taken as it is, without merging
};

// The merges as a table.
class BpeMerger {
 public:
  explicit BpeMerger(const BpeDefinition& definition);

  // Appends the tokens of one piece. Takes n log n steps for n bytes.
  void encode(std::string_view piece, std::vector<int32_t>& tokens) const;

 private:
  struct Entry {
    uint64_t pair = 0;
    uint32_t rank = 0;
    int32_t result = -1;  // -1: the entry is empty
  };
  const Entry* find(int32_t left, int32_t right) const;
  void encode_short(std::string_view piece, std::vector<int32_t>& tokens) const;
  void encode_long(std::string_view piece, std::vector<int32_t>& tokens) const;

  std::array<int32_t, 256> byte_tokens_;
  std::vector<Entry> table_;  // open addressing, at most half full
  int shift_ = 0;
};

}  // namespace cleave
