#include "data/added_tokens.h"

#include <algorithm>

namespace cleave {

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& t) { return t.content.empty(); });
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (const AddedToken& t : tokens_) begins_[static_cast<uint8_t>(t.content[0])] = true;
  if (!tokens_.empty() && tokens_.front().content[0] == tokens_.back().content[0]) {
    only_byte_ = static_cast<uint8_t>(tokens_[0].content[0]);
  }
}

AddedTokenFinder::Found AddedTokenFinder::find(std::string_view text, size_t from) const {
  if (tokens_.empty()) return {};
  for (size_t at = from; at < text.size(); ++at) {
    if (only_byte_ >= 0) {
      at = text.find(static_cast<char>(only_byte_), at);
      if (at == std::string_view::npos) return {};
    } else if (!begins_[static_cast<uint8_t>(text[at])]) {
      continue;
    }
    const Found found = longest_at(text, at);
    if (found.bytes > 0) return found;
  }
  return {};
}

// The sorted tokens that agree with the text so far are a range, which narrows with each byte.
AddedTokenFinder::Found AddedTokenFinder::longest_at(std::string_view text, size_t at) const {
  Found found;
  auto first = tokens_.begin(), last = tokens_.end();
  for (size_t n = 0; at + n < text.size(); ++n) {
    const auto byte = static_cast<uint8_t>(text[at + n]);
    const auto nth = [&](const AddedToken& t) {
      return n < t.content.size() ? int{static_cast<uint8_t>(t.content[n])} : -1;
    };
    first = std::partition_point(first, last, [&](const auto& t) { return nth(t) < byte; });
    last = std::partition_point(first, last, [&](const auto& t) { return nth(t) <= byte; });
    if (first == last) break;
    if (first->content.size() == n + 1) found = {at, n + 1, first->id};
  }
  return found;
}

}  // namespace cleave
