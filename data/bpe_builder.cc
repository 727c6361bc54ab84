#include "data/bpe_builder.h"

#include <array>

#include "data/unicode.h"
#include "graph/error.h"

namespace cleave {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 20;

bool spells_itself(uint8_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// By code point below 0x144: the byte it stands for, or -1.
const std::array<int16_t, 0x144>& bytes_by_code() {
  static const std::array<int16_t, 0x144> table = [] {
    std::array<int16_t, 0x144> bytes;
    bytes.fill(-1);
    for (int b = 0; b < 256; ++b) {
      bytes[spelling_of_byte(static_cast<uint8_t>(b))] = static_cast<int16_t>(b);
    }
    return bytes;
  }();
  return table;
}

// For messages, which are one short line.
std::string shortened(const std::string& spelling) {
  return spelling.size() <= 40 ? spelling : spelling.substr(0, 37) + "...";
}

}  // namespace

char32_t spelling_of_byte(uint8_t byte) {
  if (spells_itself(byte)) return byte;
  char32_t code = 0x100;
  for (int b = 0; b < byte; ++b) code += spells_itself(static_cast<uint8_t>(b)) ? 0 : 1;
  return code;
}

std::optional<std::string> bytes_of_spelling(std::string_view spelling) {
  std::string bytes;
  for (size_t at = 0; at < spelling.size();) {
    const Character c = character_at(spelling, at);
    if (c.code >= bytes_by_code().size() || bytes_by_code()[c.code] < 0) return std::nullopt;
    bytes += static_cast<char>(bytes_by_code()[c.code]);
    at += c.bytes;
  }
  return bytes;
}

size_t BpeBuilder::checked_id(const std::string& spelling, int64_t id) {
  if (id < 0 || id >= kMostTokens) {
    fail("'{}': token '{}' has the id {}; ids are 0 to {}", definition_.name, shortened(spelling),
         id, kMostTokens - 1);
  }
  const auto index = static_cast<size_t>(id);
  if (definition_.tokens.size() <= index) definition_.tokens.resize(index + 1);
  return index;
}

void BpeBuilder::add_token(const std::string& spelling, int64_t id) {
  if (spelling.empty()) fail("'{}': the token with the id {} is empty", definition_.name, id);
  const size_t index = checked_id(spelling, id);
  BpeToken& token = definition_.tokens[index];
  if (!token.bytes.empty() || !ids_.emplace(spelling, static_cast<int32_t>(id)).second) {
    fail("'{}': token '{}' and another one have the id {}", definition_.name, shortened(spelling),
         id);
  }
  const std::optional<std::string> bytes = bytes_of_spelling(spelling);
  token = {bytes ? *bytes : spelling, bytes.has_value()};
}

void BpeBuilder::add_merge(const std::string& left, const std::string& right,
                           const std::string& where) {
  const auto id = [&](const std::string& spelling) {
    const auto found = ids_.find(spelling);
    if (found == ids_.end()) {
      fail("{}: '{}' is no token of '{}'; the files do not belong together", where,
           shortened(spelling), definition_.name);
    }
    return found->second;
  };
  definition_.merges.push_back({id(left), id(right), id(left + right)});
}

void BpeBuilder::add_added(const AddedToken& added, int64_t id) {
  if (added.content.empty()) fail("'{}': an added token is empty", definition_.name);
  const size_t index = checked_id(added.content, id);
  const auto known = ids_.find(added.content);
  const bool same = known != ids_.end() && known->second == id;
  if (!same && (known != ids_.end() || !definition_.tokens[index].bytes.empty())) {
    fail("'{}': the added token '{}' has the id {}, but the vocabulary has another one",
         definition_.name, shortened(added.content), id);
  }
  ids_.emplace(added.content, static_cast<int32_t>(id));
  definition_.tokens[index] = {added.content, false};
  definition_.added.push_back(added);
  definition_.added.back().id = static_cast<int32_t>(id);
}

BpeDefinition BpeBuilder::finish() && {
  for (int byte = 0; byte < 256; ++byte) {
    std::string spelling;
    append_utf8(spelling, spelling_of_byte(static_cast<uint8_t>(byte)));
    const auto found = ids_.find(spelling);
    if (found == ids_.end()) {
      fail("'{}' has no token '{}' for byte {}; a byte-level vocabulary has one for each byte",
           definition_.name, spelling, byte);
    }
    definition_.byte_tokens[static_cast<size_t>(byte)] = found->second;
  }
  return std::move(definition_);
}

}  // namespace cleave
