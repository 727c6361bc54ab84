// The one way into toml++, which takes long to compile: include it where TOML is read only.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>

#include "graph/error.h"

namespace cleave {

struct TomlAssertion : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr void toml_assert(bool holds) {
  if (!holds) throw TomlAssertion("something is missing, as a key in an inline table {,}");
}

}  // namespace cleave

// toml++ 3.3 asserts, and in release builds lets the compiler assume, that a key begins wherever
// one is due in an inline table; `a = {,}` has none. Here an assertion is a mistake in the text.
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(expr) ::cleave::toml_assert(static_cast<bool>(expr))
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

namespace cleave {

// Throws Error with the path and the line of what is no TOML.
inline toml::table parse_toml(std::string_view text, const std::string& path) {
  try {
    return toml::parse(text, path);
  } catch (const toml::parse_error& e) {
    std::string what(e.description());
    constexpr std::string_view kStart = "Error while parsing ";
    if (what.starts_with(kStart)) what.erase(0, kStart.size());
    // It may quote what it saw, to the end of the line and beyond.
    std::replace(what.begin(), what.end(), '\n', ' ');
    fail("{}:{}: not TOML: {}", path, e.source().begin.line, what);
  } catch (const TomlAssertion& e) {
    fail("{}: not TOML: {}", path, e.what());
  }
}

}  // namespace cleave
