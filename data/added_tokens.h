// Finds the tokens that are looked for in a text as they are written.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/bpe.h"

namespace cleave {

class AddedTokenFinder {
 public:
  // Empty contents are left out.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  struct Found {
    size_t begin = 0, bytes = 0;  // bytes 0: there is none
    int32_t id = 0;
  };
  // The first one at or after `from`, the longest of those that begin there.
  Found find(std::string_view text, size_t from) const;

 private:
  Found longest_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;  // by content
  std::array<bool, 256> begins_{};  // whether one begins with this byte
  int only_byte_ = -1;              // all begin with this one; -1: with different ones
};

}  // namespace cleave
