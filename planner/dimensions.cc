#include "planner/dimensions.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <numeric>

#include "graph/error.h"

namespace cleave {
namespace {

class UnionFind {
 public:
  explicit UnionFind(size_t n) : parent_(n) { std::iota(parent_.begin(), parent_.end(), 0); }
  int32_t find(int32_t x) {
    while (parent_[static_cast<size_t>(x)] != x) {
      int32_t& p = parent_[static_cast<size_t>(x)];
      p = parent_[static_cast<size_t>(p)];
      x = p;
    }
    return x;
  }
  // The smaller index stays the representative, so that results do not depend on the order.
  void join(int32_t a, int32_t b) {
    a = find(a), b = find(b);
    parent_[static_cast<size_t>(std::max(a, b))] = std::min(a, b);
  }

 private:
  std::vector<int32_t> parent_;
};

// One place where a dimension is written as several factors.
struct Compound {
  int32_t whole = 0;           // element of the dimension
  std::vector<int32_t> parts;  // elements of its factors, outermost first
  NodeId node = kNoNode;
  std::vector<int8_t> factors;
  bool broken = false;
};

// Elements are (value, dimension) and (node, factor); joined ones form "lines". A line has cuts:
// the sizes of its inner parts, ascending, each dividing the next.
class Finder {
 public:
  explicit Finder(const Graph& graph) : graph_(graph), lines_(number_elements()) {
    join_plain_factors();
    settle_cuts();
  }

  Dimensions result() {
    Dimensions d;
    const std::vector<ClassId> class_of = join_atoms(d);
    d.values.resize(graph_.values().size());
    for (size_t v = 0; v < d.values.size(); ++v) {
      const Shape& shape = graph_.values()[v].type.shape;
      for (size_t i = 0; i < shape.size(); ++i) {
        const int32_t line = lines_.find(value_element_[v] + static_cast<int32_t>(i));
        for (int32_t a = first_atom_[line]; a < first_atom_[line] + atom_count(line); ++a) {
          ValueAtom atom;
          atom.size = atom_size(line, a - first_atom_[line]);
          atom.dimension_class = class_of[static_cast<size_t>(a)];
          atom.dim = static_cast<int8_t>(i);
          d.values[v].push_back(atom);
        }
      }
    }
    d.factors.resize(graph_.nodes().size());
    d.contradicts.resize(graph_.nodes().size());
    for (size_t n = 0; n < d.factors.size(); ++n) {
      const size_t count = graph_.nodes()[n].extents.size();
      d.factors[n].resize(count);
      d.contradicts[n].resize(count, false);
      for (size_t f = 0; f < count; ++f) {
        const int32_t line = lines_.find(factor_element_[n] + static_cast<int32_t>(f));
        for (int32_t a = 0; a < atom_count(line); ++a) {
          d.factors[n][f].push_back(
              {atom_size(line, a), class_of[static_cast<size_t>(first_atom_[line] + a)]});
        }
      }
    }
    for (const Compound& c : compounds_) {
      if (!c.broken) continue;
      for (int8_t f : c.factors) d.contradicts[static_cast<size_t>(c.node)][size_t(f)] = true;
    }
    name_classes(d);
    return d;
  }

 private:
  size_t number_elements() {
    int32_t next = 0;
    for (const ValueInfo& v : graph_.values()) {
      value_element_.push_back(next);
      for (int64_t size : v.type.shape) size_.push_back(size), ++next;
    }
    for (const Node& n : graph_.nodes()) {
      factor_element_.push_back(next);
      for (int64_t size : n.extents) size_.push_back(size), ++next;
    }
    return size_.size();
  }

  void join_plain_factors() {
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        join_operand(static_cast<NodeId>(n), node.inputs[i], node.signature->inputs()[i]);
      }
      for (size_t o = 0; o < node.outputs.size(); ++o) {
        join_operand(static_cast<NodeId>(n), node.outputs[o], node.signature->outputs()[o]);
      }
      if (node.follows != kNoNode) join_followed(static_cast<NodeId>(n));
    }
    for (const Source& s : graph_.sources()) {
      for (size_t i = 0; i < graph_.type(s.value).shape.size(); ++i) {
        lines_.join(value_element_[static_cast<size_t>(s.value)] + static_cast<int32_t>(i),
                    value_element_[static_cast<size_t>(s.final)] + static_cast<int32_t>(i));
      }
    }
  }

  void join_operand(NodeId n, Value v, const OperandDims& dims) {
    for (size_t d = 0; d < dims.size(); ++d) {
      const int32_t dim = value_element_[static_cast<size_t>(v)] + static_cast<int32_t>(d);
      const int32_t first = factor_element_[static_cast<size_t>(n)];
      if (dims[d].size() == 1) {
        lines_.join(dim, first + dims[d][0]);
      } else if (dims[d].size() > 1) {
        Compound c{.whole = dim, .parts = {}, .node = n, .factors = dims[d]};
        for (int8_t f : dims[d]) c.parts.push_back(first + f);
        compounds_.push_back(std::move(c));
      }
    }
  }

  void join_followed(NodeId n) {
    const Node& node = graph_.node(n);
    const Node& leader = graph_.node(node.follows);
    for (size_t f = 0; f < node.extents.size(); ++f) {
      for (size_t g = 0; g < leader.extents.size(); ++g) {
        const int a = std::tolower(node.signature->factors()[f].letter);
        const int b = std::tolower(leader.signature->factors()[g].letter);
        if (a != b || node.extents[f] != leader.extents[g]) continue;
        lines_.join(factor_element_[static_cast<size_t>(n)] + static_cast<int32_t>(f),
                    factor_element_[static_cast<size_t>(node.follows)] + static_cast<int32_t>(g));
      }
    }
  }

  // Adds a cut to a line; false when it contradicts the line's other cuts.
  bool add_cut(int32_t line, int64_t inner, bool& changed) {
    const int64_t size = size_[static_cast<size_t>(line)];
    if (inner == 1 || inner == size) return true;
    std::vector<int64_t>& cuts = cuts_[line];
    const auto at = std::lower_bound(cuts.begin(), cuts.end(), inner);
    if (at != cuts.end() && *at == inner) return true;
    const int64_t below = at == cuts.begin() ? 1 : *(at - 1);
    const int64_t above = at == cuts.end() ? size : *at;
    if (inner % below != 0 || above % inner != 0) return false;
    cuts.insert(at, inner);
    changed = true;
    return true;
  }

  // Passes cuts between each dimension and its factors until nothing changes. A compound that
  // contradicts others is dropped with all that it has cut: the rest is settled anew.
  void settle_cuts() {
    for (bool changed = true; changed;) {
      changed = false;
      for (Compound& c : compounds_) {
        if (c.broken || exchange_cuts(c, changed)) continue;
        c.broken = changed = true;
        cuts_.clear();
        break;
      }
    }
  }

  bool exchange_cuts(const Compound& c, bool& changed) {
    const int32_t whole = lines_.find(c.whole);
    int64_t inner = 1;
    for (size_t i = c.parts.size(); i-- > 0;) {
      const int32_t part = lines_.find(c.parts[i]);
      if (part == whole)
        return inner == 1 && size_[static_cast<size_t>(part)] == size_[size_t(whole)];
      const int64_t size = size_[static_cast<size_t>(part)];
      if (!add_cut(whole, inner * size, changed)) return false;
      for (int64_t cut : std::vector<int64_t>(cuts_[part])) {
        if (!add_cut(whole, inner * cut, changed)) return false;
      }
      for (int64_t cut : std::vector<int64_t>(cuts_[whole])) {
        if (cut <= inner || cut >= inner * size) continue;
        if (cut % inner != 0 || !add_cut(part, cut / inner, changed)) return false;
      }
      inner *= size;
    }
    return true;
  }

  int32_t atom_count(int32_t line) {
    const auto at = cuts_.find(line);
    return at == cuts_.end() ? 1 : static_cast<int32_t>(at->second.size()) + 1;
  }

  // Atoms are numbered from the outermost.
  int64_t atom_size(int32_t line, int32_t atom) {
    const auto at = cuts_.find(line);
    const int64_t size = size_[static_cast<size_t>(line)];
    if (at == cuts_.end()) return size;
    const std::vector<int64_t>& cuts = at->second;
    const size_t i = cuts.size() - static_cast<size_t>(atom);  // cuts below the atom
    return (i == cuts.size() ? size : cuts[i]) / (i == 0 ? 1 : cuts[i - 1]);
  }

  std::vector<ClassId> join_atoms(Dimensions& d) {
    first_atom_.assign(size_.size(), -1);
    int32_t atoms = 0;
    std::vector<int64_t> atom_sizes;
    for (int32_t e = 0; e < static_cast<int32_t>(size_.size()); ++e) {
      if (lines_.find(e) != e) continue;
      first_atom_[static_cast<size_t>(e)] = atoms;
      for (int32_t a = 0; a < atom_count(e); ++a, ++atoms) atom_sizes.push_back(atom_size(e, a));
    }
    UnionFind joined(static_cast<size_t>(atoms));
    for (const Compound& c : compounds_) {
      if (c.broken) continue;
      int32_t at = first_atom_[static_cast<size_t>(lines_.find(c.whole))];
      for (int32_t p : c.parts) {
        const int32_t part = lines_.find(p);
        // A factor of size 1 has an atom of its own, which the whole dimension lacks.
        if (size_[static_cast<size_t>(part)] == 1) continue;
        for (int32_t a = 0; a < atom_count(part); ++a) {
          joined.join(at++, first_atom_[static_cast<size_t>(part)] + a);
        }
      }
    }
    std::vector<ClassId> class_of(static_cast<size_t>(atoms), -1);
    for (int32_t a = 0; a < atoms; ++a) {
      const int32_t root = joined.find(a);
      if (root == a) {
        class_of[static_cast<size_t>(a)] = static_cast<ClassId>(d.classes.size());
        d.classes.push_back({.size = atom_sizes[static_cast<size_t>(a)], .name = {}, .role = {}});
      } else {
        class_of[static_cast<size_t>(a)] = class_of[static_cast<size_t>(root)];
      }
    }
    return class_of;
  }

  void name_classes(Dimensions& d) {
    for (const Source& s : graph_.sources()) {
      const auto& atoms = d.values[static_cast<size_t>(s.value)];
      for (size_t i = 0; i < atoms.size(); ++i) {
        DimensionClass& c = d.classes[static_cast<size_t>(atoms[i].dimension_class)];
        const size_t dim = static_cast<size_t>(atoms[i].dim);
        if (s.kind == SourceKind::kData && dim < s.roles.size() && !s.roles[dim].empty() &&
            c.role.empty()) {
          c.role = c.name = s.roles[dim];
        } else if (c.name.empty()) {
          const bool several = std::count_if(atoms.begin(), atoms.end(), [&](const ValueAtom& a) {
                                 return a.dim == atoms[i].dim;
                               }) > 1;
          c.name = several ? fmt::format("{}[{}, part of {}]", s.name, dim, atoms[i].size)
                           : fmt::format("{}[{}]", s.name, dim);
        }
      }
    }
    for (size_t n = 0; n < d.factors.size(); ++n) {
      const Node& node = graph_.nodes()[n];
      for (size_t f = 0; f < d.factors[n].size(); ++f) {
        for (const Atom& a : d.factors[n][f]) {
          std::string& name = d.classes[static_cast<size_t>(a.dimension_class)].name;
          if (!name.empty()) continue;
          name = fmt::format("{} of {} ({})", node.signature->factors()[f].letter, node.op->name,
                             graph_.place(node.loc));
        }
      }
    }
  }

  const Graph& graph_;
  std::vector<int64_t> size_;  // by element
  std::vector<int32_t> value_element_, factor_element_;
  UnionFind lines_;
  std::vector<Compound> compounds_;
  std::map<int32_t, std::vector<int64_t>> cuts_;  // by line
  std::vector<int32_t> first_atom_;               // by line
};

}  // namespace

ClassId Dimensions::class_with_role(const std::string& role) const {
  for (size_t c = 0; c < classes.size(); ++c) {
    if (classes[c].role == role) return static_cast<ClassId>(c);
  }
  return -1;
}

Dimensions find_dimensions(const Graph& graph) { return Finder(graph).result(); }

}  // namespace cleave
