// How a text is cut into pieces before byte pairs are merged, which never happens across two.
#pragma once

#include <cstddef>
#include <string_view>

namespace cleave {

// The patterns that are known, each tried alternative by alternative as a regular expression is.
enum class SplitRule {
  kGpt2,
  kGpt4,   // Llama 3's too: numbers in threes, a newline ends a piece
  kQwen2,  // GPT-4's with every digit alone
};

// The pattern as tokenizer.json writes it.
std::string_view pattern_of(SplitRule rule);

// Where the piece that begins at `begin` ends; begin < text.size(). Bytes that are not valid UTF-8
// count as punctuation, each for itself. The text's end is what \s+(?!\S) takes it for: give the
// whole text, not a part of it.
size_t piece_end(SplitRule rule, std::string_view text, size_t begin);

}  // namespace cleave
