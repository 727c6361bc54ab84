// llm.c's token shards: a header of 256 int32, then the tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "data/token_text.h"

namespace cleave {

struct LlmcShard {
  TokenType type = TokenType::kUint16;
  int64_t tokens = 0;
  int64_t vocab = 0;  // of the tokenizer that the magic number stands for
};

inline constexpr size_t kLlmcHeaderBytes = 1024;

// Whether a file that begins like this is a shard, sound or not.
bool is_llmc_shard(std::span<const std::byte> file);

// Reads the header of a whole file. Throws Error, naming the path and the field, unless the file
// is a shard of a known version that holds as many tokens as it says.
LlmcShard read_llmc_header(const std::string& path, std::span<const std::byte> file);

}  // namespace cleave
