// The .idx file of Megatron's token files: the type of the tokens in the .bin beside it, the length
// of each sequence, and the documents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "data/token_text.h"

namespace cleave {

struct MegatronIndex {
  TokenType type = TokenType::kUint16;
  int64_t sequences = 0, documents = 0;
  int64_t tokens = 0;  // in the .bin
};

// Whether a file that begins like this is an index, sound or not.
bool is_megatron_index(std::span<const std::byte> file);

// Reads a whole index. Throws Error, naming the path and the field, unless it is one of a known
// version and token type whose tables have their place in the file and whose sequences lie one
// after the other. Needs no memory.
MegatronIndex read_megatron_index(const std::string& path, std::span<const std::byte> file);

}  // namespace cleave
