// Reads what other programs write of a byte-level tokenizer: vocab.json with merges.txt, and
// tokenizer.json. `path` is what messages name; the texts are not trusted.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/bpe.h"

namespace cleave {

// GPT-2's pair of files. Entries <|...|> of the vocabulary that no merge makes are taken for added
// tokens. Throws Error, naming the file and the entry or line.
BpeDefinition read_vocab_and_merges(const std::string& vocab_path, std::string_view vocab,
                                    const std::string& merges_path, std::string_view merges);

// Hugging Face's one file. Throws Error, naming the field, for what is malformed, and for what
// would give other tokens than the library's: models other than BPE on bytes, a normalizer, a
// pattern that is not known (pre_tokenizer.h), added tokens that strip or want whole words. The
// post-processor, truncation and padding are not read: no token is added to a text.
BpeDefinition read_tokenizer_json(const std::string& path, std::string_view text);

// Whether JSON text is a tokenizer.json, and not a vocab.json.
bool is_tokenizer_json(std::string_view text);

}  // namespace cleave
