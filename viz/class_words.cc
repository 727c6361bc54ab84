#include "viz/class_words.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "graph/repeats.h"
#include "viz/names.h"

namespace cleave {
namespace {

size_t at(int32_t i) { return static_cast<size_t>(i); }

class Namer {
 public:
  Namer(const Graph& graph, const Dimensions& dims)
      : graph_(graph), dims_(dims), words_(dims.classes.size()), scope_(dims.classes.size()) {}

  std::vector<std::string> words() {
    find_scopes();
    for (size_t c = 0; c < words_.size(); ++c) words_[c] = dims_.classes[c].role;
    name_by_ops();
    name_width();
    for (size_t c = 0; c < words_.size(); ++c) {
      if (words_[c].empty()) words_[c] = by_place(static_cast<ClassId>(c));
    }
    tell_apart();
    return std::move(words_);
  }

 private:
  void give(ClassId c, std::string_view word) {
    std::string& w = words_[at(c)];
    if (c >= 0 && w.empty()) w = word;
  }

  // The innermost scope, layers folded, that holds all ops of the forward that a class goes
  // through.
  void find_scopes() {
    std::vector<bool> seen(words_.size());
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (node.phase != Phase::kForward) continue;
      const std::string scope = folded_name(graph_.scopes()[at(node.scope)]);
      for (const auto& factor : dims_.factors[n]) {
        for (const Atom& atom : factor) {
          if (atom.dimension_class < 0) continue;
          const size_t c = at(atom.dimension_class);
          scope_[c] = seen[c] ? common_scope(scope_[c], scope) : scope;
          seen[c] = true;
        }
      }
    }
  }

  // What an op's letters are called, where everybody calls them the same.
  void name_by_ops() {
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (node.phase != Phase::kForward) continue;
      const std::string_view op = node.op->name;
      const auto classes_of = [&](char letter) {
        const int f = node.signature->factor(letter);
        return f < 0 ? std::vector<Atom>() : dims_.factors[n][static_cast<size_t>(f)];
      };
      if (op == "attention") {
        const bool grouped = node.extents[static_cast<size_t>(node.signature->factor('r'))] > 1;
        for (const Atom& a : classes_of('g'))
          give(a.dimension_class, grouped ? "kv heads" : "heads");
        for (const Atom& a : classes_of('r')) give(a.dimension_class, "heads a kv head");
        for (char letter : {'E', 'V'}) {
          for (const Atom& a : classes_of(letter)) give(a.dimension_class, "head size");
        }
      }
      if (op == "dispatch" || op == "grouped_matmul") {
        for (const Atom& a : classes_of('e')) give(a.dimension_class, "experts");
      }
      if (op == "cross_entropy") {
        for (const Atom& a : classes_of('V'))
          vocabulary_.insert(a.size), give(a.dimension_class, "vocabulary");
      }
    }
    // Tables of as many rows as there are answers hold the same things.
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (node.op->name != "embedding" || node.phase != Phase::kForward) continue;
      for (const Atom& a : dims_.factors[n][static_cast<size_t>(node.signature->factor('v'))]) {
        give(a.dimension_class, vocabulary_.contains(a.size) ? "vocabulary" : "table rows");
      }
    }
  }

  // What values carry from one repeated layer to the next.
  void name_width() {
    const Layers layers = layers_of(graph_, repeats(graph_));
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      if (graph_.nodes()[n].phase != Phase::kForward || layers.nodes[n].repeat < 0) continue;
      for (Value v : graph_.nodes()[n].inputs) {
        const NodeId producer = graph_.value(v).producer;
        if (producer == kNoNode) continue;
        const Layer& made = layers.nodes[at(producer)];
        if (made.repeat != layers.nodes[n].repeat || made.copy == layers.nodes[n].copy) continue;
        for (const ValueAtom& a : dims_.values[at(v)]) {
          if (a.dimension_class >= 0) give(a.dimension_class, "width");
        }
      }
    }
  }

  std::string by_place(ClassId c) const {
    const std::string name = class_name(dims_, c);
    const std::string& scope = scope_[at(c)];
    const size_t bracket = name.find('[');
    const std::string parameter = name.substr(0, bracket);
    // Held by several layers of one part of the model, and by nothing outside of it.
    const std::string_view part = last_part(scope);
    if (!part.empty() && part != "*" && !parameter.starts_with(scope + ".weight") &&
        !parameter.starts_with(scope + ".bias")) {
      return fmt::format("{} inner", part);
    }
    if (bracket == std::string::npos) return name;
    const size_t dot = parameter.rfind('.');
    const std::string_view owner = last_part(std::string_view(parameter).substr(0, dot));
    const std::string_view holder = dot == std::string::npos ? std::string_view(parameter) : owner;
    const bool part_of = name.find("part of") != std::string::npos;
    const std::string_view side = name[bracket + 1] == '0' ? "outputs" : "inputs";
    return fmt::format("{} {}{}", holder, part_of ? "part of " : "", side);
  }

  // Equal words for classes of different names: the place in brackets.
  void tell_apart() {
    std::map<std::string, std::set<std::string>> names;
    const auto full = [&](size_t c) { return class_name(dims_, static_cast<ClassId>(c)); };
    for (size_t c = 0; c < words_.size(); ++c) {
      if (dims_.classes[c].role.empty()) names[words_[c]].insert(full(c));
    }
    for (size_t c = 0; c < words_.size(); ++c) {
      const auto found = names.find(words_[c]);
      if (!dims_.classes[c].role.empty() || found == names.end() || found->second.size() < 2)
        continue;
      std::string place = full(c).substr(0, full(c).find_first_of("[ "));
      for (std::string_view leaf : {".weight", ".bias"}) {
        if (place.ends_with(leaf)) place.erase(place.size() - leaf.size());
      }
      if (place != full(c)) words_[c] += fmt::format(" ({})", inside_layer(place));
    }
  }

  const Graph& graph_;
  const Dimensions& dims_;
  std::vector<std::string> words_, scope_;
  std::set<int64_t> vocabulary_;
};

}  // namespace

std::vector<std::string> class_words(const Graph& graph, const Dimensions& dimensions) {
  return Namer(graph, dimensions).words();
}

}  // namespace cleave
