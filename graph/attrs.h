// The named constants of a node: a dropout's rate, a slice's bounds, an AdamW's betas.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace cleave {

using AttrValue = std::variant<int64_t, double, std::string, std::vector<int64_t>>;

// A small map, ordered by name. An attribute whose name is a single letter is the size of that
// factor, for factors that no input carries (`c` in a broadcast "ab->abc").
class Attrs {
 public:
  Attrs() = default;
  Attrs(std::initializer_list<std::pair<std::string_view, AttrValue>> items);

  void set(std::string_view name, AttrValue value);
  bool has(std::string_view name) const { return find(name) != nullptr; }
  const AttrValue* find(std::string_view name) const;

  // The value, or an InternalError when it is absent or of another type.
  int64_t integer(std::string_view name) const;
  double real(std::string_view name) const;
  const std::string& text(std::string_view name) const;
  const std::vector<int64_t>& list(std::string_view name) const;

  // The value, or `otherwise` when it is absent.
  int64_t integer_or(std::string_view name, int64_t otherwise) const;
  double real_or(std::string_view name, double otherwise) const;

  const std::vector<std::pair<std::string, AttrValue>>& items() const { return items_; }
  bool empty() const { return items_.empty(); }
  bool operator==(const Attrs&) const = default;

 private:
  std::vector<std::pair<std::string, AttrValue>> items_;
};

}  // namespace cleave
