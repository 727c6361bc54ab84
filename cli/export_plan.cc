#include "cli/export_plan.h"

#include <algorithm>
#include <map>

#include "graph/error.h"

namespace cleave {
namespace {

size_t at(int32_t i) { return static_cast<size_t>(i); }

// "dp2" is a second "dp".
std::string role_of(const std::string& axis) {
  std::string role = axis;
  while (!role.empty() && std::isdigit(static_cast<unsigned char>(role.back()))) role.pop_back();
  return role;
}

// The parameter that a value is, perhaps cast; kNoValue: none. Only what keeps the shape counts.
Value parameter_of(const Graph& graph, Value v) {
  const Shape& shape = graph.type(v).shape;
  for (int depth = 0; depth < 4; ++depth) {
    if (const Source* s = graph.source_of(v)) {
      return s->kind == SourceKind::kParameter ? v : kNoValue;
    }
    const NodeId producer = graph.value(v).producer;
    if (producer == kNoNode || graph.node(producer).inputs.size() != 1) return kNoValue;
    v = graph.node(producer).inputs[0];
    if (graph.type(v).shape != shape) return kNoValue;
  }
  return kNoValue;
}

class Reader {
 public:
  Reader(const LoadedPlan& loaded, int tensor_axis)
      : graph_(loaded.model.graph), plan_(loaded.plan), axis_(tensor_axis) {}

  std::vector<ModuleSplit> modules() {
    std::map<std::string, size_t> known;
    std::vector<ModuleSplit> result;
    std::map<Value, size_t> module_of;
    for (const Source& s : graph_.sources()) {
      if (s.kind != SourceKind::kParameter) continue;
      const size_t dot = s.name.rfind('.');
      const std::string name = dot == std::string::npos ? s.name : s.name.substr(0, dot);
      const auto [entry, added] = known.emplace(name, result.size());
      if (added) result.push_back({.name = name});
      module_of[s.value] = entry->second;
    }
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (node.phase != Phase::kForward) continue;
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        const Value parameter = parameter_of(graph_, node.inputs[i]);
        if (parameter == kNoValue || !is_use(node, i)) continue;
        look(static_cast<NodeId>(n), i, result[module_of.at(parameter)]);
      }
    }
    return result;
  }

 private:
  // A cast is on the way, no use.
  bool is_use(const Node& node, size_t) const {
    return node.inputs.size() > 1 || parameter_of(graph_, node.outputs[0]) == kNoValue;
  }

  void look(NodeId n, size_t operand, ModuleSplit& m) const {
    const Node& node = graph_.node(n);
    // A weight that is summed over with an operand of the data, or looked up.
    const bool product = contracts(node) && graph_.type(node.inputs[operand]).shape.size() >= 2;
    m.multiplies |= product;
    if (axis_ < 0) return;
    const Layout layout =
        plan_.layout(node.inputs[operand], plan_.nodes[at(n)].input_forms[operand]);
    const Placement& p = layout.placements[at(axis_)];
    if (!p.is_shard()) return;
    const int dim = layout.atom_dim[static_cast<size_t>(p.atom)];
    int64_t pieces = 1;
    for (size_t a = 0; a < static_cast<size_t>(p.atom); ++a) {
      if (layout.atom_dim[a] == dim) pieces *= layout.atoms[a];
    }
    const MemberSplit::OnAxis& on = plan_.nodes[at(n)].axes[at(axis_)];
    ModuleSplit::Kind kind = ModuleSplit::Kind::kOther;
    if (product && on.factor >= 0) {
      const Factor& f = node.signature->factors()[static_cast<size_t>(on.factor)];
      const bool summed = node.signature->reduced_in(on.factor, 0);
      // Looked up: the ids that choose rows are whole numbers.
      const bool table = std::any_of(node.inputs.begin(), node.inputs.end(),
                                     [&](Value v) { return !is_float(graph_.type(v).dtype); });
      kind = table    ? (summed && f.indexed ? ModuleSplit::Kind::kTableRows
                                             : ModuleSplit::Kind::kTableWidth)
             : summed ? ModuleSplit::Kind::kRows
                      : ModuleSplit::Kind::kColumns;
    } else if (!product && m.kind != ModuleSplit::Kind::kWhole) {
      return;  // a bias follows its weight
    }
    // A table that is a product's weight elsewhere is what the look-up says.
    if (m.kind == ModuleSplit::Kind::kTableRows || m.kind == ModuleSplit::Kind::kTableWidth) return;
    m.kind = kind, m.pieces = pieces, m.first = dim == 0;
  }

  const Graph& graph_;
  const Plan& plan_;
  const int axis_;
};

// Whether some op of the forward that works on the data alone is split along the sequence there.
bool sequence_is_split(const LoadedPlan& loaded, int axis) {
  const Graph& graph = loaded.model.graph;
  const Plan& plan = loaded.plan;
  const ClassId sequence = plan.dimensions->class_with_role("sequence");
  if (axis < 0 || sequence < 0) return false;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (graph.nodes()[n].phase != Phase::kForward || contracts(graph.nodes()[n])) continue;
    const MemberSplit::OnAxis& on = plan.nodes[n].axes[at(axis)];
    if (on.factor < 0) continue;
    const Atom& atom =
        plan.dimensions->factors[n][static_cast<size_t>(on.factor)][static_cast<size_t>(on.atom)];
    if (atom.dimension_class == sequence) return true;
  }
  return false;
}

}  // namespace

Exported exported(const LoadedPlan& loaded, const std::string& target) {
  const Plan& plan = loaded.plan;
  if (!loaded.model.spec.training) fail("--to {}: a plan of the forward alone", target);
  Exported e;
  int tensor_axis = -1;
  for (size_t a = 0; a < plan.mesh.axes.size(); ++a) {
    const MeshAxis& axis = plan.mesh.axes[a];
    if (axis.size == 1) continue;
    const std::string role = role_of(axis.name);
    if (role == "dp") {
      e.data *= axis.size;
    } else if (role == "tp") {
      if (tensor_axis >= 0) {
        fail("--to {}: the plan splits layers over two axes; plan again with --mesh dp=N,tp=M",
             target);
      }
      tensor_axis = static_cast<int>(a);
      e.tensor = axis.size;
    } else if (role == "cp") {
      e.context *= axis.size;
    } else if (role == "ep") {
      e.expert *= axis.size;
    } else {
      fail(
          "--to {}: axis {} only repeats work on {} devices; plan for fewer devices, or with "
          "--mesh dp=N,tp=M",
          target, axis.name, axis.size);
    }
  }
  e.micro_batches = loaded.model.graph.micro_batches;
  const int64_t batch = loaded.model.config.batch;
  if (batch % e.data != 0) {
    fail("--to {}: {} sequences are not the same number on {} data-parallel ranks", target, batch,
         e.data);
  }
  e.sequences = batch / e.data;
  e.sequence_parallel = sequence_is_split(loaded, tensor_axis);
  e.modules = Reader(loaded, tensor_axis).modules();
  return e;
}

}  // namespace cleave
