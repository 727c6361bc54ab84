#include "graph/attrs.h"

#include <algorithm>

#include "graph/error.h"

namespace cleave {
namespace {

template <class T>
const T& get(const Attrs& attrs, std::string_view name) {
  const AttrValue* value = attrs.find(name);
  CLEAVE_ASSERT(value != nullptr, "attribute '{}' is missing", name);
  const T* typed = std::get_if<T>(value);
  CLEAVE_ASSERT(typed != nullptr, "attribute '{}' has another type", name);
  return *typed;
}

}  // namespace

Attrs::Attrs(std::initializer_list<std::pair<std::string_view, AttrValue>> items) {
  for (const auto& [name, value] : items) set(name, value);
}

void Attrs::set(std::string_view name, AttrValue value) {
  auto at = std::lower_bound(items_.begin(), items_.end(), name,
                             [](const auto& item, std::string_view n) { return item.first < n; });
  if (at != items_.end() && at->first == name) {
    at->second = std::move(value);
  } else {
    items_.emplace(at, std::string(name), std::move(value));
  }
}

const AttrValue* Attrs::find(std::string_view name) const {
  for (const auto& [n, value] : items_) {
    if (n == name) return &value;
  }
  return nullptr;
}

int64_t Attrs::integer(std::string_view name) const { return get<int64_t>(*this, name); }
double Attrs::real(std::string_view name) const { return get<double>(*this, name); }
const std::string& Attrs::text(std::string_view name) const {
  return get<std::string>(*this, name);
}
const std::vector<int64_t>& Attrs::list(std::string_view name) const {
  return get<std::vector<int64_t>>(*this, name);
}

int64_t Attrs::integer_or(std::string_view name, int64_t otherwise) const {
  return has(name) ? integer(name) : otherwise;
}
double Attrs::real_or(std::string_view name, double otherwise) const {
  return has(name) ? real(name) : otherwise;
}

}  // namespace cleave
