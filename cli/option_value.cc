// What is written for an option, to its value and back.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "cli/nearest.h"
#include "cli/options.h"
#include "graph/error.h"

namespace cleave {
namespace {

template <class... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <class... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

// "cosine or constant", "fp32, fp64, bf16 or fp16"
std::string either(const std::vector<std::string>& choices) {
  std::string text;
  for (size_t i = 0; i < choices.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == choices.size() ? " or " : ", ") + choices[i];
  }
  return text;
}

template <class T>
bool parse(const std::string& text, T& value) {
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && at == end &&
         (!std::is_floating_point_v<T> || std::isfinite(value));
}

template <class T>
void set_number(const Option& option, T& target, const std::string& text, std::string_view where) {
  T value{};
  if (!parse(text, value)) {
    const bool whole = std::is_integral_v<T>;
    // Digits alone that do not fit are a number all the same.
    const bool too_large = whole && text.find_first_not_of("-0123456789") == std::string::npos &&
                           text.find_last_of("0123456789") != std::string::npos;
    fail("{} '{}': {}{}", where, text,
         too_large ? "too large"
         : whole   ? "write a whole number"
                   : "write a number",
         option.automatic.empty() || too_large ? "" : ", or " + option.automatic_word);
  }
  const auto number = static_cast<double>(value);
  if (option.above ? !(number > option.at_least) : !(number >= option.at_least)) {
    fail("{} {}: write {} {}", where, text, option.above ? "a number above" : "at least",
         option.at_least);
  }
  target = value;
}

// A pair takes the place of one with the same key.
void set_pair(std::vector<std::string>& pairs, const std::string& text) {
  const std::string key = text.substr(0, text.find('=')) + "=";
  std::erase_if(pairs, [&](const std::string& p) { return p.starts_with(key); });
  pairs.push_back(text);
}

void set_string(const Option& option, std::string& target, const std::string& text,
                std::string_view where) {
  const std::vector<std::string>& known = option.choices;
  if (!known.empty() && std::find(known.begin(), known.end(), text) == known.end()) {
    fail("{} '{}': write {}", where, text, either(known));
  }
  if (text.empty()) fail("{} '': write {}", where, option.type.empty() ? "one" : option.type);
  target = text;
}

}  // namespace

void set_text(const Option& option, const std::string& text, std::string_view where) {
  if (!option.automatic.empty() && text == option.automatic_word) {
    std::visit(Overloaded{[&](std::string* s) { s->clear(); },
                          [&](int64_t* n) { *n = static_cast<int64_t>(option.at_least) - 1; },
                          [&](double* x) { *x = option.at_least - 1; },
                          [&](auto*) { CLEAVE_ASSERT(false, "{} has no auto", option.flag); }},
               option.target);
    return;
  }
  std::visit(Overloaded{[&](std::string* s) { set_string(option, *s, text, where); },
                        [&](int64_t* n) { set_number(option, *n, text, where); },
                        [&](double* x) { set_number(option, *x, text, where); },
                        [&](bool* b) {
                          if (text != "true" && text != "false") {
                            fail("{} '{}': write true or false", where, text);
                          }
                          *b = text == "true";
                        },
                        [&](std::optional<std::string>* s) { *s = text; },
                        [&](std::vector<std::string>* pairs) {
                          option.keys_repeat ? pairs->push_back(text) : set_pair(*pairs, text);
                        }},
             option.target);
}

std::string text_of(const Option& option) {
  const auto number = [&](auto value) {
    const bool automatic =
        !option.automatic.empty() && static_cast<double>(value) < option.at_least;
    return automatic ? option.automatic_word : fmt::format("{}", value);
  };
  return std::visit(
      Overloaded{[&](const std::string* s) {
                   return s->empty() && !option.automatic.empty() ? option.automatic_word : *s;
                 },
                 [&](const int64_t* n) { return number(*n); },
                 [&](const double* x) { return number(*x); },
                 [&](const bool* b) { return std::string(*b ? "true" : "false"); },
                 [&](const std::optional<std::string>* s) { return s->value_or(""); },
                 [&](const std::vector<std::string>* pairs) {
                   return fmt::format("{}", fmt::join(*pairs, " "));
                 }},
      option.target);
}

std::string default_text(const Option& option) {
  if (option.required) return "required";
  if (!option.automatic.empty()) return option.automatic;
  if (std::holds_alternative<bool*>(option.target)) {
    return *std::get<bool*>(option.target) ? "on" : "";
  }
  return text_of(option);
}

}  // namespace cleave
