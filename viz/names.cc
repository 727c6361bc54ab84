#include "viz/names.h"

#include <algorithm>

namespace cleave {

std::string folded_name(std::string_view name) {
  // Brackets hold dimensions, not layers; what stands in them is kept.
  const std::string_view head = name.substr(0, name.find_first_of("[ "));
  std::string folded;
  for (size_t at = 0; at <= head.size();) {
    const size_t dot = std::min(head.find('.', at), head.size());
    const std::string_view part = head.substr(at, dot - at);
    const bool number = !part.empty() && std::all_of(part.begin(), part.end(),
                                                     [](char c) { return c >= '0' && c <= '9'; });
    folded += number ? "*" : part;
    if (dot < head.size()) folded += '.';
    at = dot + 1;
  }
  return folded + std::string(name.substr(head.size()));
}

std::string class_name(const Dimensions& dimensions, ClassId c) {
  return folded_name(dimensions.classes[static_cast<size_t>(c)].name);
}

std::string common_scope(std::string_view a, std::string_view b) {
  std::string common(a);
  while (!common.empty() && b != common && !b.starts_with(common + ".")) {
    const size_t dot = common.rfind('.');
    common.erase(dot == std::string::npos ? 0 : dot);
  }
  return common;
}

std::string inside_layer(const std::string& scope) {
  const size_t star = scope.rfind("*.");
  return star == std::string::npos ? scope : scope.substr(star + 2);
}

std::string_view last_part(std::string_view scope) {
  const size_t dot = scope.rfind('.');
  return dot == std::string_view::npos ? scope : scope.substr(dot + 1);
}

}  // namespace cleave
