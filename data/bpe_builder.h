// From the spelling of tokens in files, where each byte is written as a printable character, to
// tokens by id.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "data/bpe.h"

namespace cleave {

// The bytes that a spelling stands for; none when it has a character that stands for no byte.
std::optional<std::string> bytes_of_spelling(std::string_view spelling);
// How a byte is written: the printable bytes of Latin-1 as themselves, the others from U+0100 on.
char32_t spelling_of_byte(uint8_t byte);

class BpeBuilder {
 public:
  // `path`: of the file with the vocabulary.
  explicit BpeBuilder(std::string path) { definition_.name = std::move(path); }

  // An entry of the vocabulary. `id` is what the file says.
  void add_token(const std::string& spelling, int64_t id);
  // The next merge, weaker than those before. `where`: "FILE line 3", for messages.
  void add_merge(const std::string& left, const std::string& right, const std::string& where);
  // The id may be one of the vocabulary's when the content is spelled alike.
  void add_added(const AddedToken& token, int64_t id);

  // All 256 bytes must have tokens, or there would be texts without any.
  BpeDefinition finish() &&;

  bool has_token(const std::string& spelling) const { return ids_.contains(spelling); }
  BpeDefinition& definition() { return definition_; }

 private:
  size_t checked_id(const std::string& spelling, int64_t id);

  BpeDefinition definition_;
  std::unordered_map<std::string, int32_t> ids_;  // by spelling
};

}  // namespace cleave
