// What was probably meant by a word that is not known.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cleave {

// Of `known`, the word that takes the fewest letters to change, add, drop or swap with the next
// one; empty when it takes more than a third of the longer word's.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

// "; did you mean --steps?", or nothing.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& known);

}  // namespace cleave
