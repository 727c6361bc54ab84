#include "cli/export_layouts.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "graph/error.h"
#include "planner/of_weights.h"
#include "viz/class_words.h"
#include "viz/names.h"

namespace cleave {
namespace {

using Kind = ModuleSplit::Kind;

size_t at(int32_t i) { return static_cast<size_t>(i); }

std::string_view words(Held held) {
  switch (held) {
    case Held::kWhole: return "whole";
    case Held::kBatch: return "split along the batch";
    case Held::kSequence: return "split along the sequence";
    case Held::kInner: return "split inside";
    case Held::kPartial: return "in partial sums";
  }
  return "?";
}

class Reader {
 public:
  Reader(const LoadedPlan& loaded, int tensor_axis, Exported& e)
      : graph_(loaded.model.graph),
        plan_(loaded.plan),
        axis_(tensor_axis),
        e_(e),
        of_weights_(values_of_weights(graph_)),
        words_(class_words(graph_, *plan_.dimensions)),
        batch_(plan_.dimensions->class_with_role("batch")),
        sequence_(plan_.dimensions->class_with_role("sequence")),
        consumers_(graph_.values().size()) {
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      if (graph_.nodes()[n].phase != Phase::kForward) continue;
      const auto& inputs = graph_.nodes()[n].inputs;
      for (size_t i = 0; i < inputs.size(); ++i) {
        consumers_[at(inputs[i])].push_back({static_cast<NodeId>(n), i});
      }
    }
  }

  void read() {
    std::map<Value, size_t> module_of = named_modules();
    find_width_and_experts();
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) {
      const Node& node = graph_.node(n);
      if (node.phase != Phase::kForward) continue;
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        const Value parameter = parameter_of(node.inputs[i]);
        // A cast is on the way, no use.
        const bool on_the_way =
            node.inputs.size() == 1 && parameter_of(node.outputs[0]) != kNoValue;
        if (parameter == kNoValue || on_the_way) continue;
        look(n, i, e_.modules[module_of.at(parameter)]);
      }
    }
    for (NodeId n = 0; n < static_cast<NodeId>(graph_.nodes().size()); ++n) {
      const Node& node = graph_.node(n);
      if (node.phase != Phase::kForward || works_on_weights(graph_, of_weights_, n)) continue;
      look_at_other_axes(n);
      if (axis_ >= 0) look_between(n);
    }
  }

 private:
  struct Consumer {
    NodeId node;
    size_t input;
  };

  std::map<Value, size_t> named_modules() {
    std::map<std::string, size_t> known;
    std::map<Value, size_t> module_of;
    for (const Source& s : graph_.sources()) {
      if (s.kind != SourceKind::kParameter) continue;
      const size_t dot = s.name.rfind('.');
      // Of a scope with many weights of several products each, every one is a module.
      const bool alone = dot == std::string::npos || graph_.type(s.value).shape.size() > 2;
      const std::string name = alone ? s.name : s.name.substr(0, dot);
      const auto [entry, added] = known.emplace(name, e_.modules.size());
      if (added) e_.modules.emplace_back().name = name;
      module_of[s.value] = entry->second;
      if (axis_ < 0 || plan_.values[at(s.value)].empty()) continue;
      e_.modules[entry->second].stored_in_parts |=
          plan_.values[at(s.value)][0].placements[at(axis_)].is_shard();
    }
    return module_of;
  }

  // The classes of what look-ups find: the width of what passes from layer to layer. And those of
  // which a weight has a product each.
  void find_width_and_experts() {
    for (const Node& node : graph_.nodes()) {
      if (node.phase != Phase::kForward) continue;
      for (Value v : node.inputs) {
        if (!is_weight(v) || !multiplies(node, v) || graph_.type(v).shape.size() < 3) continue;
        experts_.insert(plan_.dimensions->values[at(v)][0].dimension_class);
        numbers_of_experts_.insert(graph_.type(v).shape[0]);
      }
      if (!is_look_up(node)) continue;
      const int last = static_cast<int>(graph_.type(node.outputs[0]).shape.size()) - 1;
      for (const ValueAtom& a : plan_.dimensions->values[at(node.outputs[0])]) {
        if (a.dim == last) width_.insert(a.dimension_class);
      }
    }
  }

  // The parameter that a value is, perhaps cast; kNoValue: none. Only what keeps the shape counts.
  Value parameter_of(Value v) const {
    const Shape& shape = graph_.type(v).shape;
    for (int depth = 0; depth < 4; ++depth) {
      if (const Source* s = graph_.source_of(v)) {
        return s->kind == SourceKind::kParameter ? v : kNoValue;
      }
      const NodeId producer = graph_.value(v).producer;
      if (producer == kNoNode || graph_.node(producer).inputs.size() != 1) return kNoValue;
      v = graph_.node(producer).inputs[0];
      if (graph_.type(v).shape != shape) return kNoValue;
    }
    return kNoValue;
  }

  bool is_weight(Value v) const { return of_weights_[at(v)]; }
  // Of two operands, whole numbers that choose rows of a weight.
  bool is_look_up(const Node& node) const {
    return node.inputs.size() == 2 && contracts(node) && is_weight(node.inputs[0]) &&
           !is_float(graph_.type(node.inputs[1]).dtype);
  }
  bool multiplies(const Node& node, Value weight) const {
    return contracts(node) && graph_.type(weight).shape.size() >= 2;
  }
  std::string name_of_op(NodeId n) const {
    const std::string& scope = scope_of(n);
    return fmt::format("{}{}{}", scope, scope.empty() ? "" : ".", graph_.node(n).op->name);
  }

  // What splits node n on an axis; -1: nothing does.
  ClassId split_class(NodeId n, size_t axis) const {
    const MemberSplit::OnAxis& on = plan_.nodes[at(n)].axes[axis];
    if (on.factor < 0) return -1;
    return plan_.dimensions
        ->factors[at(n)][static_cast<size_t>(on.factor)][static_cast<size_t>(on.atom)]
        .dimension_class;
  }

  Held held(Value v, int32_t form) const {
    const Placement& p = plan_.values[at(v)][at(form)].placements[at(axis_)];
    if (p.is_partial()) return Held::kPartial;
    if (!p.is_shard()) return Held::kWhole;
    const ClassId c = plan_.dimensions->values[at(v)][static_cast<size_t>(p.atom)].dimension_class;
    return c == batch_ ? Held::kBatch : c == sequence_ ? Held::kSequence : Held::kInner;
  }
  Held read_as(const Consumer& c) const {
    return held(graph_.node(c.node).inputs[c.input], plan_.nodes[at(c.node)].input_forms[c.input]);
  }

  // Casts, and what else keeps a value as it is: of one operand, with its shape, and another type.
  bool is_cast(NodeId n) const {
    const Node& node = graph_.node(n);
    return node.inputs.size() == 1 &&
           graph_.type(node.inputs[0]).shape == graph_.type(node.outputs[0]).shape &&
           graph_.type(node.inputs[0]).dtype != graph_.type(node.outputs[0]).dtype;
  }

  // As everything else finds the value: as it is made, and partial sums as they are summed first.
  // What is gathered for some is what others have in parts.
  Held made_as(Value v) const {
    Held made = held(v, 0);
    if (made == Held::kWhole) {
      const NodeId producer = graph_.value(v).producer;
      if (producer == kNoNode || !is_cast(producer)) return made;
      return made_as(graph_.node(producer).inputs[0]);
    }
    if (made != Held::kPartial) return made;
    for (const Consumer& c : consumers_[at(v)]) {
      Held read = read_as(c);
      if (read == Held::kPartial) read = made_as(graph_.node(c.node).outputs[0]);
      if (made == Held::kPartial || made == Held::kWhole) made = read;
    }
    return made;
  }
  // As what comes after finds the result of a product that is split by its columns.
  Held left_as(Value v) const {
    Held left = held(v, 0);
    for (const Consumer& c : consumers_[at(v)]) {
      const Held read = is_cast(c.node) ? left_as(graph_.node(c.node).outputs[0]) : read_as(c);
      if (read == Held::kWhole) left = read;
    }
    return left;
  }

  void look(NodeId n, size_t operand, ModuleSplit& m) {
    const Node& node = graph_.node(n);
    // A weight that is summed over with an operand of the data, or looked up.
    const bool product = multiplies(node, node.inputs[operand]);
    const bool table = product && is_look_up(node);
    if (product && !m.multiplies) set_usual(node.inputs[operand], table, m);
    const bool again = product && m.looks_up && !table;
    m.multiplies |= product;
    if (m.multiplies) m.ops.insert(folded_name(name_of_op(n)));
    m.looks_up |= table;
    if (axis_ < 0) return;
    if (!product && m.multiplies) return;  // a bias follows its weight
    const ModuleSplit::Use use = use_of(n, operand, product, table);
    if (product && use.kind == Kind::kWhole && split_class(n, at(axis_)) >= 0) {
      note_misfit(
          fmt::format("{} has all of its weight on each rank of tp, and there a part of "
                      "the {}",
                      folded_name(name_of_op(n)), words_[at(split_class(n, at(axis_)))]));
    }
    // A product's use of a look-up's table is one of its own.
    if (again && !m.again) m.again = use;
    ModuleSplit::Use& kept = again ? *m.again : m.use;
    const int part = again ? 2 : product ? 1 : 0;
    if (!known_uses_.emplace(m.name, part).second && !kept.cut_like(use)) {
      note_misfit(fmt::format("{} has the weights of {} cut in another way than another op",
                              folded_name(name_of_op(n)), folded_name(m.name)));
      return;
    }
    kept = use;
  }

  ModuleSplit::Use use_of(NodeId n, size_t operand, bool product, bool table) const {
    const Node& node = graph_.node(n);
    ModuleSplit::Use use;
    const Layout layout =
        plan_.layout(node.inputs[operand], plan_.nodes[at(n)].input_forms[operand]);
    const Placement& p = layout.placements[at(axis_)];
    const MemberSplit::OnAxis& on = plan_.nodes[at(n)].axes[at(axis_)];
    if (p.is_shard()) {
      const bool alone = graph_.type(node.inputs[operand]).shape.size() == 1;
      use.kind = product                                  ? kind_of(n, on, table)
                 : split_class(n, at(axis_)) == sequence_ ? Kind::kPositions
                 : on.factor >= 0 && alone                ? Kind::kBias
                                                          : Kind::kOther;
      const int dim = layout.atom_dim[static_cast<size_t>(p.atom)];
      for (size_t a = 0; a < static_cast<size_t>(p.atom); ++a) {
        if (layout.atom_dim[a] == dim) use.pieces *= layout.atoms[a];
      }
      use.first = dim == 0;
    }
    use.edges = edges_of(n, operand, use.kind);
    return use;
  }

  Kind kind_of(NodeId n, const MemberSplit::OnAxis& on, bool table) const {
    const Node& node = graph_.node(n);
    if (on.factor < 0) return Kind::kOther;
    const Factor& f = node.signature->factors()[static_cast<size_t>(on.factor)];
    const bool summed = node.signature->reduced_in(on.factor, 0);
    if (node.inputs.size() > 1 && !summed && !table && by_all_operands(node, on.factor)) {
      return Kind::kExperts;
    }
    if (table) return summed && f.indexed ? Kind::kTableRows : Kind::kTableWidth;
    return summed ? Kind::kRows : Kind::kColumns;
  }
  void set_usual(Value weight, bool table, ModuleSplit& m) const {
    const size_t dims = graph_.type(weight).shape.size();
    m.experts = dims > 2 ? graph_.type(weight).shape[0] : 0;
    m.usual = Kind::kTableRows;
    if (table) return;
    // Dimensions are [in several products: which] out, in. Which product it is is chosen by whole
    // ones. What ends in the width that passes from layer to layer is split by rows.
    m.usual = Kind::kColumns;
    m.usual_dim = static_cast<int>(dims) - 2;
    if (m.experts == 0 && numbers_of_experts_.contains(graph_.type(weight).shape[0])) {
      m.usual = Kind::kWhole;
      return;
    }
    for (const ValueAtom& a : plan_.dimensions->values[at(weight)]) {
      if (a.dim != static_cast<int>(dims) - 2) continue;
      if (width_.contains(a.dimension_class)) {
        // At the model's ends, what does not end in the vocabulary is whole.
        m.usual = in_layers(m.name) ? Kind::kRows : Kind::kWhole;
        m.usual_dim = static_cast<int>(dims) - 1;
      }
    }
  }

  ModuleSplit::Edges edges_of(NodeId n, size_t operand, Kind kind) const {
    const Node& node = graph_.node(n);
    ModuleSplit::Edges edges;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      if (i == operand || is_weight(node.inputs[i])) continue;
      edges.in = made_as(node.inputs[i]);
      break;
    }
    edges.out = kind == Kind::kColumns ? left_as(node.outputs[0]) : made_as(node.outputs[0]);
    return edges;
  }

  // Once for all layers.
  void note_misfit(Misfit misfit) {
    if (known_misfits_.insert(misfit.what).second) e_.misfits.push_back(std::move(misfit));
  }
  void note_misfit(std::string what) {
    Misfit m;
    m.what = std::move(what);
    note_misfit(std::move(m));
  }

  // Axes of the batch, of experts and of the context are that for every product.
  void look_at_other_axes(NodeId n) {
    const Node& node = graph_.node(n);
    const bool product = std::any_of(node.inputs.begin(), node.inputs.end(),
                                     [&](Value v) { return is_weight(v) && multiplies(node, v); });
    if (!product) {
      look_at_context(n);
      return;
    }
    for (size_t a = 0; a < plan_.mesh.axes.size(); ++a) {
      const MeshAxis& axis = plan_.mesh.axes[a];
      if (static_cast<int>(a) == axis_ || axis.size == 1) continue;
      const std::string role = role_of(axis.name);
      const ClassId c = split_class(n, a);
      const bool fits = role == "dp"   ? c == batch_
                        : role == "cp" ? c == sequence_
                                       : c == batch_ || (c >= 0 && experts_.contains(c));
      // What all ranks look up is looked up by each there: little work.
      if (fits || (c < 0 && is_look_up(node))) continue;
      Misfit m;
      m.kind = c < 0 ? Misfit::Kind::kRepeated : Misfit::Kind::kOtherWork;
      const std::string name = folded_name(name_of_op(n));
      m.op = name;
      m.dim = dim_of(node.outputs[0], role == "cp" ? sequence_ : batch_);
      m.what = c < 0 ? fmt::format("each of the {} ranks of {} does all of {}", axis.size,
                                   axis.name, name)
                     : fmt::format("{} is split by {} over {}", name, words_[at(c)], axis.name);
      m.axis = axis.name;
      note_misfit(std::move(m));
    }
  }

  // Which dimension of a value begins with this class; -1: none.
  int dim_of(Value v, ClassId c) const {
    for (const ValueAtom& a : plan_.dimensions->values[at(v)]) {
      if (a.dimension_class == c) return a.dim;
    }
    return -1;
  }

  void look_at_context(NodeId n) {
    if (!multiplies_data(graph_.node(n))) return;
    for (size_t a = 0; a < plan_.mesh.axes.size(); ++a) {
      const MeshAxis& axis = plan_.mesh.axes[a];
      if (axis.size == 1 || role_of(axis.name) != "cp") continue;
      e_.rings &= plan_.nodes[at(n)].axes[a].ring >= 0;
    }
  }

  // A factor that is summed over and that two operands of the data have: attention.
  bool multiplies_data(const Node& node) const {
    for (size_t f = 0; f < node.signature->factors().size(); ++f) {
      if (!node.signature->reduced_in(static_cast<int>(f), 0)) continue;
      int operands = 0;
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        if (is_weight(node.inputs[i]) || !is_float(graph_.type(node.inputs[i]).dtype)) continue;
        operands += has_factor(node.signature->inputs()[i], static_cast<int>(f));
      }
      if (operands >= 2) return true;
    }
    return false;
  }
  // Of a factor that all its operands have, and that is no batch.
  int64_t heads_of(NodeId n) const {
    const Node& node = graph_.node(n);
    int64_t heads = 1;
    for (size_t f = 0; f < node.signature->factors().size(); ++f) {
      const auto& atoms = plan_.dimensions->factors[at(n)][f];
      const bool batch = std::any_of(atoms.begin(), atoms.end(),
                                     [&](const Atom& a) { return a.dimension_class == batch_; });
      if (!batch && by_all_operands(node, static_cast<int>(f))) {
        heads = std::max(heads, node.extents[f]);
      }
    }
    return heads;
  }
  static bool has_factor(const OperandDims& dims, int factor) {
    for (const auto& dim : dims) {
      for (const auto f : dim) {
        if (f == factor) return true;
      }
    }
    return false;
  }

  // Whether all that reads a value, perhaps cast, is products that are split by columns.
  bool enters_columns(const Consumer& c) const {
    const Node& node = graph_.node(c.node);
    if (is_cast(c.node)) {
      const auto& next = consumers_[at(node.outputs[0])];
      return !next.empty() && std::all_of(next.begin(), next.end(), [&](const Consumer& after) {
        return enters_columns(after);
      });
    }
    const MemberSplit::OnAxis& on = plan_.nodes[at(c.node)].axes[at(axis_)];
    return on.factor >= 0 &&
           std::any_of(node.inputs.begin(), node.inputs.end(),
                       [&](Value v) { return is_weight(v) && multiplies(node, v); }) &&
           !node.signature->reduced_in(on.factor, 0);
  }

  // The product whose partial sums v is; kNoNode: they are of something else.
  NodeId summing(Value v) const {
    NodeId n = graph_.value(v).producer;
    while (n != kNoNode && plan_.nodes[at(n)].axes[at(axis_)].partial) {
      const Node& node = graph_.node(n);
      const auto partial = std::find_if(node.inputs.begin(), node.inputs.end(), [&](Value in) {
        return !is_weight(in) && held(in, 0) == Held::kPartial;
      });
      if (partial == node.inputs.end()) return kNoNode;
      n = graph_.value(*partial).producer;
    }
    if (n == kNoNode) return n;
    const Node& node = graph_.node(n);
    const bool product = std::any_of(node.inputs.begin(), node.inputs.end(), [&](Value in) {
      return is_weight(in) && multiplies(node, in);
    });
    return product ? n : kNoNode;
  }

  const std::string& scope_of(NodeId n) const { return graph_.scopes()[at(graph_.node(n).scope)]; }

  // Numbers of rows alone: losses, sums of them.
  bool is_small(Value v) const {
    const auto& atoms = plan_.dimensions->values[at(v)];
    return std::all_of(atoms.begin(), atoms.end(), [&](const ValueAtom& a) {
      return a.dimension_class == batch_ || a.dimension_class == sequence_;
    });
  }

  void look_between(NodeId n) {
    const Node& node = graph_.node(n);
    const std::string name = folded_name(name_of_op(n));
    if (multiplies_data(node)) e_.attention.insert(name);
    const ClassId c = split_class(n, at(axis_));
    if (c == batch_ && c >= 0) {
      note_misfit(fmt::format("{} is split along the batch over tp", name));
      return;
    }
    const int factor = plan_.nodes[at(n)].axes[at(axis_)].factor;
    if (multiplies_data(node) && (c < 0 || c == sequence_ || !by_all_operands(node, factor))) {
      Misfit m;
      m.heads = heads_of(n);
      m.op = name;
      m.kind = c < 0 ? Misfit::Kind::kWholeAttention : Misfit::Kind::kAttention;
      m.what = fmt::format("{} is {} over tp, not split by heads", name,
                           c < 0            ? "whole"
                           : c == sequence_ ? "split along the sequence"
                                            : fmt::format("split by {}", words_[at(c)]));
      note_misfit(std::move(m));
      if (c >= 0) return;
    }
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const Value v = node.inputs[i];
      if (is_weight(v) || is_small(v) || !is_float(graph_.type(v).dtype)) continue;
      look_at_edge(n, i, name);
    }
    const bool inside =
        std::any_of(plan_.nodes[at(n)].inner.begin(), plan_.nodes[at(n)].inner.end(),
                    [&](const Step& s) { return s.axis == axis_; });
    // A loss over the logits in parts is what is usual.
    if (inside && !is_small(node.outputs[0])) {
      note_misfit(fmt::format("ranks of tp meet inside of {}", name));
    }
  }

  bool by_all_operands(const Node& node, int factor) const {
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      if (!is_float(graph_.type(node.inputs[i]).dtype)) continue;
      if (!has_factor(node.signature->inputs()[i], factor)) return false;
    }
    return true;
  }

  void look_at_edge(NodeId n, size_t i, const std::string& name) {
    const Node& node = graph_.node(n);
    const Value v = node.inputs[i];
    const Held read = read_as({n, i});
    if (read == Held::kPartial || is_cast(n)) return;
    if (held(v, 0) == Held::kPartial && summing(v) == kNoNode) {
      note_misfit(fmt::format("{} reads sums over tp that no split weight makes", name));
      return;
    }
    const Held made = made_as(v);
    if (made == read) return;
    if (made == Held::kSequence && read == Held::kWhole && enters_columns({n, i})) return;
    // Logits that are gathered for the loss; what is looked up, for everything.
    if (made == Held::kInner && read != Held::kInner && ends_a_module(v)) return;
    Misfit m;
    const bool enters = made == Held::kWhole && read == Held::kSequence && !in_layers(scope_of(n));
    if (enters) {
      m.kind = Misfit::Kind::kEnters;
    } else if ((made == Held::kWhole && read == Held::kSequence) ||
               (made == Held::kSequence && read == Held::kWhole)) {
      m.kind = Misfit::Kind::kSequence;
    }
    m.what = fmt::format("{} reads {} over tp what is made {}", name, words(read), words(made));
    note_misfit(std::move(m));
  }

  bool ends_a_module(Value v) const {
    const NodeId producer = graph_.value(v).producer;
    if (producer == kNoNode || in_layers(scope_of(producer))) return false;
    const Node& node = graph_.node(producer);
    return std::any_of(node.inputs.begin(), node.inputs.end(),
                       [&](Value in) { return is_weight(in) && multiplies(node, in); });
  }

  const Graph& graph_;
  const Plan& plan_;
  const int axis_;
  Exported& e_;
  const std::vector<bool> of_weights_;    // by value
  const std::vector<std::string> words_;  // by class
  const ClassId batch_, sequence_;
  std::vector<std::vector<Consumer>> consumers_;  // by value: of the forward
  std::set<ClassId> width_, experts_;
  std::set<int64_t> numbers_of_experts_;
  std::set<std::string> known_misfits_;
  std::set<std::pair<std::string, int>> known_uses_;  // of a module: by a gain, a product, again
};

}  // namespace

bool in_layers(const std::string& name) {
  return name.find('*') != std::string::npos || folded_name(name) != name;
}

std::string role_of(const std::string& axis) {
  std::string role = axis;
  while (!role.empty() && std::isdigit(static_cast<unsigned char>(role.back()))) role.pop_back();
  return role;
}

void read_layouts(const LoadedPlan& loaded, int tensor_axis, Exported& e) {
  Reader(loaded, tensor_axis, e).read();
}

}  // namespace cleave
