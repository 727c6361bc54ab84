#include "data/llmc_shard.h"

#include <cstring>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr int32_t kGpt2Magic = 20240520, kLlama3Magic = 20240801;
constexpr int64_t kGpt2Vocab = 50257, kLlama3Vocab = 128256;

int32_t header_word(std::span<const std::byte> file, size_t index) {
  int32_t word = 0;
  std::memcpy(&word, file.data() + index * sizeof word, sizeof word);
  return word;
}

}  // namespace

bool is_llmc_shard(std::span<const std::byte> file) {
  if (file.size() < sizeof(int32_t)) return false;
  const int32_t magic = header_word(file, 0);
  return magic == kGpt2Magic || magic == kLlama3Magic;
}

LlmcShard read_llmc_header(const std::string& path, std::span<const std::byte> file) {
  CLEAVE_ASSERT(is_llmc_shard(file), "'{}' is no shard", path);
  if (file.size() < kLlmcHeaderBytes) {
    fail("'{}': a token shard's header has {} bytes, but the file only {}; copy it again", path,
         kLlmcHeaderBytes, file.size());
  }
  const bool gpt2 = header_word(file, 0) == kGpt2Magic;
  LlmcShard shard{gpt2 ? TokenType::kUint16 : TokenType::kUint32, header_word(file, 2),
                  gpt2 ? kGpt2Vocab : kLlama3Vocab};
  if (const int32_t version = header_word(file, 1); version != 1) {
    fail(
        "'{}': a token shard of version {} (byte 4), and only 1 is known; write it again with "
        "llm.c's scripts",
        path, version);
  }
  const auto held = static_cast<int64_t>(file.size() - kLlmcHeaderBytes);
  const auto width = static_cast<int64_t>(bytes_of(shard.type));
  if (shard.tokens < 0 || shard.tokens * width != held) {
    fail(
        "'{}': the header says {} tokens (byte 8) of {} bytes, but {} bytes follow it; the file "
        "was cut or damaged, copy it again",
        path, shard.tokens, width, held);
  }
  return shard;
}

}  // namespace cleave
