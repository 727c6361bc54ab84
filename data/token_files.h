// From what a user writes after --data to one text of tokens: which files are meant, and what each
// of them is, told by its content.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/token_text.h"
#include "data/tokenizer.h"

namespace cleave {

enum class TextFormat : uint8_t {
  kBytes,     // a text, one token a byte
  kEncoded,   // a text, encoded by a tokenizer when it was opened
  kLlmc,      // token shards of llm.c's
  kMegatron,  // Megatron's .bin and .idx
  kRaw,       // tokens and nothing else, as the user says
};

struct OpenText {
  TokenText tokens;
  TextFormat format = TextFormat::kBytes;
  int64_t vocab = 0;  // of the tokenizer that made the tokens; 0: not known
};

// `paths` is a file, a pattern (*, ?, [...]; its files are sorted by name), or several of either
// with commas between: together they are one text. Files that hold tokens are mapped, texts too
// unless the tokenizer is one of more than bytes: then they are encoded into memory. A file is
//   .idx or .bin of Megatron's (the other lies beside it; their common prefix will do as well),
//   a shard of llm.c's, by its first bytes,
//   a text otherwise; one that has a zero byte near its start is refused unless it is written
//   text:PATH. uint16:PATH and uint32:PATH are tokens without a header.
// Throws Error, naming the file, when one cannot be read, is empty, damaged, or of another kind
// than the others.
OpenText open_text(const std::string& paths, const Tokenizer& tokenizer);

}  // namespace cleave
