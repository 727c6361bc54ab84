#include "cli/config_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/nearest.h"
#include "graph/error.h"
#include "models/config.h"
#include "planner/toml_text.h"

namespace cleave {
namespace {

constexpr size_t kMostBytes = 1 << 20;

using Sections = std::array<std::pair<std::string_view, std::string_view>, 8>;
// In the order in which they are printed.
constexpr Sections kSections = {{{"model", "What is trained"},
                                 {"data", "On what"},
                                 {"devices", "On which devices"},
                                 {"train", "How long, and in which portions"},
                                 {"optimizer", "How the weights change"},
                                 {"evaluation", "The loss on text that is not learned"},
                                 {"checkpoint", "What a run can go on from"},
                                 {"run", "Where the run is written, and what it tells"}}};

// Reads one file; every error names it and a line.
class Reader {
 public:
  Reader(const std::string& path, const std::vector<Option>& options)
      : path_(path), options_(options) {}

  void section(const std::string& name, const toml::node& node) const {
    const bool known = std::any_of(kSections.begin(), kSections.end(),
                                   [&](const auto& s) { return s.first == name; });
    if (!known && !node.is_table()) refuse_loose_key(name, node);
    if (!known) {
      fail("{}: there is no section [{}]{}", at(node), name,
           hint(name, section_names(), "the sections are "));
    }
    if (!node.is_table())
      fail("{}: '{}' is a section: write [{}] above its keys", at(node), name, name);
    for (const auto& [key, value] : *node.as_table()) {
      const std::string entry(key.str());
      set(option(name, entry, value), value);
    }
  }

 private:
  std::string at(const toml::node& node) const {
    return fmt::format("{}:{}", path_, node.source().begin.line);
  }

  static std::vector<std::string> section_names() {
    std::vector<std::string> names;
    for (const auto& [name, unused] : kSections) names.emplace_back(name);
    return names;
  }

  // "; did you mean x?", or all that there is.
  static std::string hint(std::string_view word, const std::vector<std::string>& known,
                          std::string_view introduction) {
    const std::string near = did_you_mean(word, known);
    return near.empty() ? fmt::format("; {}{}", introduction, fmt::join(known, ", ")) : near;
  }

  // `steps = 3` above all sections.
  [[noreturn]] void refuse_loose_key(const std::string& name, const toml::node& node) const {
    for (const Option& o : options_) {
      if (!o.key.empty() && o.entry() == name) {
        fail("{}: '{}' stands in no section: write it below [{}]", at(node), name, o.section());
      }
    }
    fail("{}: there is no section for '{}'{}", at(node), name,
         hint(name, section_names(), "the sections are "));
  }

  const Option& option(const std::string& section, const std::string& entry,
                       const toml::node& node) const {
    std::vector<std::string> entries;
    for (const Option& o : options_) {
      if (o.key.empty()) continue;
      if (o.key == section + "." + entry) return o;
      if (o.section() == section) entries.push_back(o.entry());
    }
    for (const Option& o : options_) {
      if (!o.key.empty() && o.entry() == entry) {
        fail("{}: '{}' is no key of [{}] but of [{}]", at(node), entry, section, o.section());
      }
    }
    fail("{}: there is no key '{}' in [{}]{}", at(node), entry, section,
         hint(entry, entries, "the keys are "));
  }

  void set(const Option& o, const toml::node& node) const {
    const std::string where = fmt::format("{}: {}", at(node), o.key);
    if (std::holds_alternative<std::vector<std::string>*>(o.target)) return set_pairs(o, node);
    const bool is_text = std::holds_alternative<std::string*>(o.target);
    const bool is_flag = std::holds_alternative<bool*>(o.target);
    const std::string text = scalar_text(node);
    const bool word = node.is_string() && !o.automatic.empty() && text == o.automatic_word;
    const bool right_type = word || (is_text   ? node.is_string()
                                     : is_flag ? node.is_boolean()
                                               : node.is_number());
    if (!right_type) {
      const bool whole = std::holds_alternative<int64_t*>(o.target);
      fail("{} = {}: write {}{}", where, node.is_string() ? quoted(text) : text,
           is_text   ? "text in quotes"
           : is_flag ? "true or false"
           : whole   ? "a whole number"
                     : "a number",
           o.automatic.empty() ? "" : fmt::format(", or \"{}\"", o.automatic_word));
    }
    set_text(o, text, where);
  }

  // { layers = 4, hidden = 256 }, as --set layers=4 hidden=256
  void set_pairs(const Option& o, const toml::node& node) const {
    if (!node.is_table()) {
      fail("{}: {}: write a table: {} = {{ layers = 4 }}", at(node), o.key, o.entry());
    }
    for (const auto& [key, value] : *node.as_table()) {
      if (!value.is_number() && !value.is_boolean() && !value.is_string()) {
        fail("{}: {}.{}: write a number, true or false", at(value), o.key, key.str());
      }
      const std::string pair = fmt::format("{}={}", key.str(), scalar_text(value));
      try {
        ModelConfig scratch;
        set_value(scratch, pair);
      } catch (const Error& e) {
        const std::string_view what = e.what();
        fail("{}: {}", at(value),
             what.starts_with("--set ") ? what.substr(std::string_view("--set ").size()) : what);
      }
      set_text(o, pair, at(value));
    }
  }

  static std::string quoted(const std::string& text) { return "\"" + text + "\""; }

  // As it is written on a command line.
  static std::string scalar_text(const toml::node& node) {
    if (const auto* s = node.as_string()) return s->get();
    if (const auto* i = node.as_integer()) return std::to_string(i->get());
    if (const auto* b = node.as_boolean()) return b->get() ? "true" : "false";
    if (const auto* f = node.as_floating_point()) {
      std::string text = fmt::format("{}", f->get());
      // A whole number that was written as 3.0 stays a float.
      return text.find_first_not_of("-0123456789") == std::string::npos ? text + ".0" : text;
    }
    return node.is_table() ? "{...}" : node.is_array() ? "[...]" : "a date or time";
  }

  const std::string& path_;
  const std::vector<Option>& options_;
};

// A JSON string is one of TOML too, but for one character.
std::string toml_string(const Option& o, const std::string& text) {
  std::string quoted;
  try {
    quoted = nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail("{}: the value is not UTF-8, which the run's config.toml cannot hold; rename it",
         o.name());
  }
  for (size_t i; (i = quoted.find('\x7f')) != std::string::npos;) quoted.replace(i, 1, "\\u007f");
  return quoted;
}

// As TOML writes it, which knows no ".5" or "007".
std::string toml_number(const std::string& value) {
  const auto parsed = [&](auto number) -> std::string {
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    const bool whole = error == std::errc() && end == value.data() + value.size();
    return whole ? fmt::format("{}", number) : "";
  };
  std::string text = parsed(int64_t{0});
  if (text.empty()) text = parsed(0.0);
  return text.empty() ? value : text;  // true, false
}

// "{ layers = 4, hidden = 256 }"
std::string toml_pairs(const std::vector<std::string>& pairs) {
  std::string text;
  for (const std::string& pair : pairs) {
    ModelConfig scratch;
    set_value(scratch, pair);  // throws when it is no pair of a known key and a value
    const size_t equals = pair.find('=');
    text += fmt::format("{}{} = {}", text.empty() ? "" : ", ", pair.substr(0, equals),
                        toml_number(pair.substr(equals + 1)));
  }
  return text.empty() ? "{}" : "{ " + text + " }";
}

std::string toml_value(const Option& o) {
  if (const auto* pairs = std::get_if<std::vector<std::string>*>(&o.target)) {
    return toml_pairs(**pairs);
  }
  const std::string text = text_of(o);
  const bool bare = !std::holds_alternative<std::string*>(o.target) && text != o.automatic_word;
  return bare ? text : toml_string(o, text);
}

// "Learning rate at the last step; auto: a tenth of the rate (--min-lr)"
std::string comment_of(const Option& o) {
  std::string text = o.help;
  if (o.required) text += "; required";
  if (!o.automatic.empty()) text += fmt::format("; {}: {}", o.automatic_word, o.automatic);
  return o.flag.starts_with('-') ? fmt::format("{} ({})", text, o.name()) : text;
}

}  // namespace

void parse_config(std::string_view text, const std::string& path,
                  const std::vector<Option>& options) {
  const toml::table table = parse_toml(text, path);
  const Reader reader(path, options);
  for (const auto& [name, node] : table) reader.section(std::string(name.str()), node);
}

void read_config(const std::string& path, const std::vector<Option>& options) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad() || (file.gcount() == 0 && !file.eof())) {
    fail("cannot read '{}': --config takes the TOML of a run; --print-config makes one", path);
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMostBytes) fail("{}: larger than 1 MiB, so not the TOML of a run", path);
  parse_config(text, path, options);
}

std::string config_text(const std::vector<Option>& options) {
  struct Line {
    std::string text, comment;
  };
  std::string result = "# A run of cleave: cleave train --config FILE. Flags override it.\n";
  for (const auto& [section, about] : kSections) {
    std::vector<Line> lines;
    size_t width = 0;
    for (const Option& o : options) {
      if (o.key.empty() || o.section() != section) continue;
      const bool missing = o.required && text_of(o).empty();
      lines.push_back(
          {fmt::format("{}{} = {}", missing ? "# " : "", o.entry(), toml_value(o)), comment_of(o)});
      width = std::max(width, lines.back().text.size());
    }
    result += fmt::format("\n[{}]  # {}\n", section, about);
    for (const auto& [line, comment] : lines) {
      result += fmt::format("{:<{}}  # {}\n", line, width, comment);
    }
  }
  return result;
}

std::string config_text(const TrainArguments& arguments) {
  TrainArguments copy = arguments;
  return config_text(options_of(copy));
}

}  // namespace cleave
