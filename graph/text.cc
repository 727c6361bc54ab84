#include "graph/text.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "graph/error.h"

namespace cleave {
namespace {

// --- Words ---------------------------------------------------------------------------------------

bool is_word_char(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || std::string_view("_./+-").find(c) < 5;
}

// Whether the text can stand without quotes. A ':' is part of a word when more of the word follows.
bool is_bare(std::string_view text) {
  if (text.empty() || text.back() == ':') return false;
  return std::all_of(text.begin(), text.end(), [](char c) { return is_word_char(c) || c == ':'; });
}

std::string quoted(std::string_view text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      result += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      result += c;
    }
  }
  return result + '"';
}

std::string word(std::string_view text) { return is_bare(text) ? std::string(text) : quoted(text); }

// Shortest text that reads back as the same number, and not as an integer.
std::string real_text(double x) {
  std::string text = fmt::format("{}", x);
  if (text.find_first_of(".einf") == std::string::npos) text += ".0";
  return text;
}

std::string attr_text(const AttrValue& value) {
  struct Visitor {
    std::string operator()(int64_t x) const { return fmt::format("{}", x); }
    std::string operator()(double x) const { return real_text(x); }
    std::string operator()(const std::string& x) const { return quoted(x); }
    std::string operator()(const std::vector<int64_t>& x) const {
      return fmt::format("[{}]", fmt::join(x, ", "));
    }
  };
  return std::visit(Visitor{}, value);
}

// --- Printing ------------------------------------------------------------------------------------

std::string source_text(const Source& s, const TensorType& type) {
  std::string line =
      fmt::format("{} %{} {}: {}", name_of(s.kind), s.value, word(s.name), to_string(type));
  if (!s.roles.empty()) {
    std::vector<std::string> roles;
    for (const std::string& r : s.roles) roles.push_back(word(r));
    line += fmt::format(" ({})", fmt::join(roles, ", "));
  }
  if (s.kind != SourceKind::kData || s.init != Init{}) {
    line += fmt::format(" = {}({})", name_of(s.init.kind), s.init.a);
  }
  if (s.final != s.value) line += fmt::format(" -> %{}", s.final);
  return line;
}

// --- Parsing -------------------------------------------------------------------------------------

// Reads one line from left to right.
class LineParser {
 public:
  explicit LineParser(std::string_view line) : rest_(line) { skip_spaces(); }

  bool done() const { return rest_.empty() || rest_[0] == '#'; }
  bool at(char c) const { return !rest_.empty() && rest_[0] == c; }

  bool take(std::string_view token) {
    if (!rest_.starts_with(token)) return false;
    rest_.remove_prefix(token.size());
    skip_spaces();
    return true;
  }
  void expect(std::string_view token) {
    if (!take(token)) fail("expected '{}' before {}", token, here());
  }
  // A keyword: a bare word that is exactly this.
  bool take_word(std::string_view keyword) {
    if (bare() != keyword) return false;
    return take(keyword);
  }

  std::string any_word(std::string_view what) {
    if (at('"')) return string();
    const std::string_view text = bare();
    if (text.empty()) fail("expected {} before {}", what, here());
    rest_.remove_prefix(text.size());
    skip_spaces();
    return std::string(text);
  }

  std::string string() {
    std::string result;
    size_t i = 1;
    for (; i < rest_.size() && rest_[i] != '"'; ++i) {
      if (rest_[i] != '\\') {
        result += rest_[i];
      } else if (rest_.substr(i).size() >= 4 && rest_[i + 1] == 'x') {
        unsigned code = 0;
        const char* end = rest_.data() + i + 4;
        if (std::from_chars(rest_.data() + i + 2, end, code, 16).ptr != end) {
          fail("'\\x' needs two hexadecimal digits");
        }
        result += static_cast<char>(code);
        i += 3;
      } else if (++i < rest_.size()) {
        result += rest_[i];
      }
    }
    if (!at('"') || i >= rest_.size()) fail("expected a closed string before {}", here());
    rest_.remove_prefix(i + 1);
    skip_spaces();
    return result;
  }

  template <class T>
  T number(std::string_view what) {
    T value{};
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error == std::errc::result_out_of_range) fail("{} is out of range at {}", what, here());
    if (error != std::errc{}) fail("expected {} before {}", what, here());
    rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
    skip_spaces();
    return value;
  }

  Value value() {
    if (!take("%")) fail("expected a value such as %7 before {}", here());
    const Value v = number<Value>("the number of a value");
    if (v < 0) fail("%{} is not a value", v);
    return v;
  }

  // Items between two brackets, separated by commas.
  template <class Item>
  void list(std::string_view open, std::string_view close, const Item& item) {
    expect(open);
    if (take(close)) return;
    do {
      item();
    } while (take(","));
    expect(close);
  }

  TensorType type() {
    TensorType result;
    result.dtype = dtype_named(any_word("an element type"));
    list("[", "]", [&] { result.shape.push_back(number<int64_t>("a size")); });
    return result;
  }

  AttrValue attr() {
    if (at('"')) return string();
    if (at('[')) {
      std::vector<int64_t> items;
      list("[", "]", [&] { items.push_back(number<int64_t>("an integer")); });
      return items;
    }
    const std::string_view text = bare();
    if (text.find_first_of(".einf") == std::string_view::npos) return number<int64_t>("a number");
    return number<double>("a number");
  }

  void expect_done() const {
    if (!done()) fail("nothing more can stand at {}", here());
  }

 private:
  void skip_spaces() {
    while (at(' ') || at('\t') || at('\r')) rest_.remove_prefix(1);
  }
  std::string here() const {
    if (rest_.empty()) return "the end of the line";
    return fmt::format("'{}{}'", rest_.substr(0, 20), rest_.size() > 20 ? "..." : "");
  }
  std::string_view bare() const {
    size_t n = 0;
    while (n < rest_.size() && (is_word_char(rest_[n]) || rest_[n] == ':')) {
      if (rest_.substr(n).starts_with("->")) break;
      ++n;
    }
    std::string_view text = rest_.substr(0, n);
    while (text.ends_with(':')) text.remove_suffix(1);
    return text;
  }

  std::string_view rest_;
};

// Collects the records of a text, line by line.
class GraphParser {
 public:
  GraphRecord parse(std::string_view text) {
    try {
      for (line_ = 1; !text.empty(); ++line_) {
        const size_t end = text.find('\n');
        parse_line(text.substr(0, end));
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
      }
      line_ = 1;
      if (!named_) fail("the text does not begin with 'graph NAME'");
    } catch (const Error& e) {
      fail("line {}: {}", line_, e.what());
    }
    std::sort(record_.sources.begin(), record_.sources.end(),
              [](const SourceRecord& a, const SourceRecord& b) {
                return a.source.value < b.source.value;
              });
    return std::move(record_);
  }

 private:
  void parse_line(std::string_view line) {
    LineParser p(line);
    if (p.done()) return;
    if (!named_) {
      if (!p.take_word("graph")) fail("the text does not begin with 'graph NAME'");
      record_.name = p.any_word("a name");
      if (p.take_word("micro_batches")) record_.micro_batches = p.number<int64_t>("a number");
      named_ = true;
    } else if (p.at('%')) {
      node(p);
    } else if (p.take_word("output")) {
      const std::string name = p.any_word("a name");
      record_.outputs.push_back({{name, p.value()}, line_});
    } else {
      const std::string first = p.any_word("a value, 'data', 'forward' or 'output'");
      if (p.done()) {
        phase_ = phase_named(first);
        in_phase_ = true;
      } else {
        source(source_kind_named(first), p);
      }
    }
    p.expect_done();
  }

  void source(SourceKind kind, LineParser& p) {
    SourceRecord r;
    r.where = line_;
    r.source.kind = kind;
    r.source.value = p.value();
    r.source.name = p.any_word("a name");
    p.expect(":");
    r.type = p.type();
    if (p.at('(')) p.list("(", ")", [&] { r.source.roles.push_back(p.any_word("a role")); });
    if (p.take("=")) {
      r.source.init.kind = init_named(p.any_word("'constant', 'normal' or 'uniform'"));
      p.expect("(");
      r.source.init.a = p.number<double>("a number");
      p.expect(")");
    } else if (kind != SourceKind::kData) {
      fail("'{}' needs a start, such as '= constant(0)'", r.source.name);
    }
    if (p.take("->")) r.source.final = p.value();
    record_.sources.push_back(std::move(r));
  }

  void node(LineParser& p) {
    if (!in_phase_) fail("a line 'forward', 'backward' or 'update' comes before the first node");
    NodeRecord r;
    r.where = line_;
    r.phase = phase_;
    do {
      r.outputs.push_back(p.value());
      p.expect(":");
      r.types.push_back(p.type());
    } while (p.take(","));
    p.expect("=");
    r.op = p.any_word("an op");
    p.list("(", ")", [&] { r.inputs.push_back(p.value()); });
    if (!p.at('"')) fail("'{}' needs its factor string, in quotes", r.op);
    r.factors = p.string();
    if (p.at('{')) {
      p.list("{", "}", [&] {
        const std::string name = p.any_word("an attribute");
        if (r.attrs.has(name)) fail("attribute '{}' is given twice", name);
        p.expect(":");
        r.attrs.set(name, p.attr());
      });
    }
    if (p.take_word("writes")) {
      do {
        r.writes.push_back(p.take("-") ? kNoValue : p.value());
      } while (p.take(","));
    }
    if (p.take_word("follows")) {
      const Value v = p.value();
      const auto leader = node_of_.find(v);
      if (leader == node_of_.end()) fail("no node before this begins with %{}", v);
      r.follows = leader->second;
    }
    if (p.take_word("in")) r.scope = p.any_word("a scope");
    if (p.take("@")) location(p, r);
    node_of_.emplace(r.outputs[0], static_cast<NodeId>(record_.nodes.size()));
    record_.nodes.push_back(std::move(r));
  }

  static void location(LineParser& p, NodeRecord& r) {
    if (p.at('"')) {
      r.file = p.string();
      p.expect(":");
      r.line = p.number<int32_t>("a line");
      return;
    }
    const std::string text = p.any_word("a file and line");
    const size_t colon = text.rfind(':');
    if (colon == std::string::npos || colon == 0) fail("'@{}' is not FILE:LINE", text);
    r.file = text.substr(0, colon);
    LineParser number(std::string_view(text).substr(colon + 1));
    r.line = number.number<int32_t>("a line");
    number.expect_done();
  }

  GraphRecord record_;
  std::unordered_map<Value, NodeId> node_of_;  // by first output
  Phase phase_ = Phase::kForward;
  bool named_ = false, in_phase_ = false;
  int32_t line_ = 1;
};

}  // namespace

std::string to_text(const Graph& graph, NodeId id) {
  const Node& n = graph.node(id);
  std::vector<std::string> items;
  for (Value v : n.outputs) items.push_back(fmt::format("%{}: {}", v, to_string(graph.type(v))));
  std::string line = fmt::format("{} = {}(", fmt::join(items, ", "), n.op->name);
  items.clear();
  for (Value v : n.inputs) items.push_back(fmt::format("%{}", v));
  line += fmt::format("{}) {}", fmt::join(items, ", "), quoted(n.signature->text()));
  if (!n.attrs.empty()) {
    items.clear();
    for (const auto& [name, value] : n.attrs.items()) {
      items.push_back(fmt::format("{}: {}", word(name), attr_text(value)));
    }
    line += fmt::format(" {{{}}}", fmt::join(items, ", "));
  }
  if (!n.writes.empty()) {
    items.clear();
    for (Value v : n.writes) items.push_back(v == kNoValue ? "-" : fmt::format("%{}", v));
    line += fmt::format(" writes {}", fmt::join(items, ", "));
  }
  if (n.follows != kNoNode) line += fmt::format(" follows %{}", graph.node(n.follows).outputs[0]);
  const std::string& scope = graph.scopes()[static_cast<size_t>(n.scope)];
  if (!scope.empty()) line += " in " + word(scope);
  if (n.loc.file >= 0) {
    const std::string& file = graph.files()[static_cast<size_t>(n.loc.file)];
    const bool bare = is_bare(file) && file.find(':') == std::string::npos;
    line += fmt::format(" @{}:{}", bare ? file : quoted(file), n.loc.line);
  }
  return line;
}

std::string to_text(const Graph& graph) {
  std::string text = "graph " + word(graph.name);
  if (graph.micro_batches != 1) text += fmt::format(" micro_batches {}", graph.micro_batches);
  text += "\n\n";
  for (const Source& s : graph.sources()) text += source_text(s, graph.type(s.value)) + '\n';
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Phase phase = graph.nodes()[n].phase;
    if (n == 0 || phase != graph.nodes()[n - 1].phase) {
      text += fmt::format("\n{}\n", name_of(phase));
    }
    text += to_text(graph, static_cast<NodeId>(n)) + '\n';
  }
  if (!graph.outputs().empty()) text += '\n';
  for (const Output& o : graph.outputs()) {
    text += fmt::format("output {} %{}\n", word(o.name), o.value);
  }
  return text;
}

Graph graph_from_text(std::string_view text, OpLookup lookup) {
  return build(GraphParser().parse(text), lookup,
               [](int32_t line) { return fmt::format("line {}", line); });
}

}  // namespace cleave
