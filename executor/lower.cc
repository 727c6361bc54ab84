#include "executor/lower.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "executor/buffers.h"
#include "executor/memory_layout.h"
#include "graph/error.h"
#include "planner/bundles.h"
#include "planner/expansion.h"

namespace cleave {

InstrKind kind_of(StepKind kind) {
  switch (kind) {
    case StepKind::kAllReduce: return InstrKind::kAllReduce;
    case StepKind::kAllGather: return InstrKind::kAllGather;
    case StepKind::kReduceScatter: return InstrKind::kReduceScatter;
    case StepKind::kAllToAll: return InstrKind::kAllToAll;
    case StepKind::kSlice: return InstrKind::kSlice;
    case StepKind::kMask: return InstrKind::kMask;
  }
  return InstrKind::kCopy;
}

namespace {

class Lowering {
 public:
  Lowering(const Graph& graph, const Plan& plan) : graph_(graph), plan_(plan) {
    program_.mesh = plan.mesh;
    program_.micro_batches = graph.micro_batches;
    for (const auto& forms : plan.values) tensors_.emplace_back(forms.size(), -1);
  }

  Program run() {
    add_sources();
    bool updating = false;
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      if (graph_.nodes()[n].phase == Phase::kUpdate && !updating) {
        updating = true;
        if (graph_.micro_batches > 1) finish_pass();
        add_bundles(false);
      }
      add_node(static_cast<NodeId>(n));
    }
    if (!updating) add_bundles(false);
    add_bundles(true);
    finish_sources();
    for (size_t o = 0; o < graph_.outputs().size(); ++o) {
      const Output& out = graph_.outputs()[o];
      program_.outputs.push_back({out.name, ensure(out.value, plan_.output_form[o])});
    }
    assign_buffers(program_, wishes_);
    check_passes();
    return std::move(program_);
  }

 private:
  TensorId& tensor(Value v, int32_t form) {
    return tensors_[static_cast<size_t>(v)][static_cast<size_t>(form)];
  }
  const Form& form(Value v, int32_t f) const {
    return plan_.values[static_cast<size_t>(v)][static_cast<size_t>(f)];
  }

  TensorId add_tensor(DType dtype, Layout layout, std::string name) {
    ProgramTensor t;
    t.dtype = dtype;
    t.name = std::move(name);
    const Shape local = layout.local_shape(plan_.mesh);
    t.geometry = {0, local, contiguous_strides(local)};
    t.layout = std::move(layout);
    program_.tensors.push_back(std::move(t));
    return static_cast<TensorId>(program_.tensors.size() - 1);
  }

  std::string name(Value v) const {
    const Source* s = graph_.source_of(v);
    return s != nullptr ? s->name : fmt::format("%{}", v);
  }

  std::string where(NodeId n) const {
    const Node& node = graph_.node(n);
    return fmt::format("{} {}", graph_.scopes()[static_cast<size_t>(node.scope)],
                       graph_.place(node.loc));
  }

  void add_sources() {
    for (const Source& s : graph_.sources()) {
      const TensorId t = add_tensor(graph_.type(s.value).dtype, plan_.layout(s.value, 0), s.name);
      tensor(s.value, 0) = t;
      program_.sources.push_back({.kind = s.kind,
                                  .name = s.name,
                                  .init = s.init,
                                  .roles = s.roles,
                                  .tensor = t,
                                  .final = -1});
    }
  }

  // A state that ends in another tensor wishes to end in its own memory.
  void finish_sources() {
    for (size_t i = 0; i < graph_.sources().size(); ++i) {
      const Source& s = graph_.sources()[i];
      if (s.kind == SourceKind::kData) continue;
      ProgramSource& p = program_.sources[i];
      p.final = s.final == s.value ? p.tensor : ensure(s.final, plan_.final_form[i]);
      if (p.final != p.tensor)
        wishes_.push_back({.tensor = p.final, .target = p.tensor, .must = true});
    }
  }

  // Makes what belongs to the forward and the backward and only the update will read: it counts for
  // every micro-batch.
  void finish_pass() {
    for (size_t v = 0; v < plan_.values.size(); ++v) {
      const auto& forms = plan_.values[v];
      for (size_t f = 0; f < forms.size(); ++f) {
        if (tensors_[v][0] < 0 || forms[f].from < 0 || forms[f].phase == Phase::kUpdate) continue;
        ensure(static_cast<Value>(v), static_cast<int32_t>(f));
      }
    }
  }

  // A state that every micro-batch changes must be changed in place: a copy at the end of the step
  // would come too late.
  void check_passes() const {
    if (graph_.micro_batches == 1) return;
    for (size_t i = 0; i < graph_.sources().size(); ++i) {
      const Source& s = graph_.sources()[i];
      const NodeId producer = graph_.value(s.final).producer;
      if (producer == kNoNode || graph_.node(producer).phase == Phase::kUpdate) continue;
      CLEAVE_ASSERT(program_.sources[i].final == ensured(s.final, plan_.final_form[i]),
                    "{} '{}' is not written in place by each micro-batch", name_of(s.kind), s.name);
    }
  }

  TensorId ensured(Value v, int32_t f) const {
    return tensors_[static_cast<size_t>(v)][static_cast<size_t>(f)];
  }

  // The tensor of a form, made now if it is not yet there.
  TensorId ensure(Value v, int32_t f) {
    if (tensor(v, f) >= 0) return tensor(v, f);
    const Form& target = form(v, f);
    CLEAVE_ASSERT(target.from >= 0, "%{} is read before it is made", v);
    TensorId t = ensure(v, target.from);
    for (const Step& step : target.steps) t = add_step(v, t, step, target.phase);
    return tensor(v, f) = t;
  }

  TensorId add_step(Value v, TensorId from, const Step& step, Phase phase) {
    const Instr instr = step_instr(v, from, step, phase);
    program_.instrs.push_back(instr);
    return instr.out[0];
  }

  Instr step_instr(Value v, TensorId from, const Step& step, Phase phase) {
    Layout layout = program_.tensor(from).layout;
    Instr instr;
    instr.kind = kind_of(step.kind);
    instr.axis = step.axis;
    instr.phase = phase;
    Placement& p = layout.placements[static_cast<size_t>(step.axis)];
    if (p.is_partial()) instr.reduction = p.reduction;
    p = step.to;
    instr.in = {from};
    instr.out = {add_tensor(program_.tensor(from).dtype, std::move(layout), name(v))};
    const NodeId producer = graph_.value(v).producer;
    instr.where = producer == kNoNode ? name(v) : where(producer);
    return instr;
  }

  // Runs the steps of all bundled forms; a bundle's collectives are one instruction.
  void add_bundles(bool made_by_update) {
    const std::vector<Bundle> all = bundles(graph_, plan_, made_by_update);
    for (const Bundle& bundle : all) {
      for (const BundledStep& b : bundle) {
        const int32_t from = form(b.value, b.form).from;
        if (!form(b.value, from).bundled) ensure(b.value, from);
      }
    }
    std::map<std::pair<Value, int32_t>, TensorId> at;  // the forms being made
    for (const Bundle& bundle : all) {
      Instr joined;
      for (const BundledStep& b : bundle) {
        const Form& f = form(b.value, b.form);
        TensorId& now =
            at.emplace(std::pair(b.value, b.form), tensor(b.value, f.from)).first->second;
        Instr instr = step_instr(b.value, now, f.steps[b.step], f.phase);
        now = instr.out[0];
        if (b.step + 1 == f.steps.size()) tensor(b.value, b.form) = now;
        if (joined.out.empty()) {
          joined = std::move(instr);
          if (is_collective(joined.kind)) joined.where = "bundle";
        } else {
          joined.in.push_back(instr.in[0]);
          joined.out.push_back(instr.out[0]);
        }
      }
      program_.instrs.push_back(std::move(joined));
    }
  }

  void add_node(NodeId n) {
    const Node& node = graph_.node(n);
    const NodePlan& plan = plan_.nodes[static_cast<size_t>(n)];
    std::vector<TensorId> in;
    for (size_t i = 0; i < node.inputs.size(); ++i)
      in.push_back(ensure(node.inputs[i], plan.input_forms[i]));
    if (std::any_of(plan.axes.begin(), plan.axes.end(),
                    [](const auto& on) { return on.expanded; })) {
      add_expanded(n, in);
      return;
    }
    Instr instr;
    instr.op = node.op;
    instr.signature = node.signature;
    instr.attrs = node.attrs;
    instr.node = n;
    instr.phase = node.phase;
    instr.where = where(n);
    instr.in = in;
    for (const MemberSplit::OnAxis& on : plan.axes) {
      instr.splits.push_back(split_of(*node.signature, on.factor, on.atom, on.partial));
    }
    set_letter_atoms(instr, plan_.dimensions->factors[static_cast<size_t>(n)]);
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      const Value v = node.outputs[o];
      const TensorId t = add_tensor(graph_.type(v).dtype, plan_.layout(v, 0), name(v));
      instr.out.push_back(t);
      tensor(v, 0) = t;
      if (const Value target = node.overwrites(o); target != kNoValue) wish(t, target, in);
    }
    program_.instrs.push_back(std::move(instr));
  }

  static Split split_of(const Signature& signature, int factor, int8_t atom, bool partial) {
    Split s;
    s.partial = partial;
    if (factor < 0) return s;
    s.letter = signature.factors()[static_cast<size_t>(factor)].letter;
    s.atom = atom;
    return s;
  }

  static void set_letter_atoms(Instr& instr, const std::vector<std::vector<Atom>>& factors) {
    for (const auto& factor : factors) {
      instr.letter_atoms.emplace_back();
      for (const Atom& a : factor) instr.letter_atoms.back().push_back(a.size);
    }
  }

  // The new version wishes to lie where the old one does: in the form that was read, if any.
  void wish(TensorId t, Value target, const std::vector<TensorId>& in) {
    TensorId best = -1;
    for (TensorId candidate : tensors_[static_cast<size_t>(target)]) {
      if (candidate < 0 || program_.tensor(candidate).layout != program_.tensor(t).layout) continue;
      if (best < 0 || std::find(in.begin(), in.end(), candidate) != in.end()) best = candidate;
    }
    if (best >= 0) wishes_.push_back({.tensor = t, .target = best, .in_place = true});
  }

  // An op written out: each part is split along the classes that its split means, and its partial
  // results are combined at once.
  void add_expanded(NodeId n, const std::vector<TensorId>& in) {
    const Node& node = graph_.node(n);
    const NodePlan& plan = plan_.nodes[static_cast<size_t>(n)];
    const std::vector<TensorType> types = graph_.input_types(node);
    std::vector<std::vector<ValueAtom>> atoms;
    for (Value v : node.inputs) atoms.push_back(plan_.dimensions->values[static_cast<size_t>(v)]);
    char letter = 0;
    int64_t shards = 1;
    for (size_t a = 0; a < plan.axes.size(); ++a) {
      if (!plan.axes[a].expanded) continue;
      letter = node.signature->factors()[static_cast<size_t>(plan.axes[a].factor)].letter;
      shards *= plan_.mesh.axes[a].size;
    }
    const auto d = expand_op(*node.op, Graph::call(node, types), letter, shards, atoms);
    CLEAVE_ASSERT(d.has_value(), "{} was planned to be split along {}", node.op->name, letter);
    std::vector<ClassId> axis_class(plan.axes.size(), -1);
    for (size_t a = 0; a < plan.axes.size(); ++a) {
      for (size_t i = 0; i < in.size() && axis_class[a] < 0; ++i) {
        const Placement& p = program_.tensor(in[i]).layout.placements[a];
        if (p.is_shard())
          axis_class[a] = d->dimensions.values[i][static_cast<size_t>(p.atom)].dimension_class;
      }
    }
    std::vector<TensorId> inner(d->graph.values().size(), -1);
    std::copy(in.begin(), in.end(), inner.begin());
    for (const ExpandedNode& part : split_expansion(*d, axis_class)) {
      add_part(*d, part, n, inner);
    }
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      const TensorId t = inner[static_cast<size_t>(d->outputs[o])];
      CLEAVE_ASSERT(program_.tensor(t).layout == plan_.layout(node.outputs[o], 0),
                    "{}: its parts end as {}", node.op->name,
                    to_string(program_.tensor(t).layout, plan_.mesh));
      tensor(node.outputs[o], 0) = t;
    }
  }

  void add_part(const Expansion& d, const ExpandedNode& part, NodeId n,
                std::vector<TensorId>& inner) {
    const Node& node = d.graph.node(part.node);
    const auto& factors = d.dimensions.factors[static_cast<size_t>(part.node)];
    Instr instr;
    instr.op = node.op;
    instr.signature = node.signature;
    instr.attrs = node.attrs;
    instr.node = n;
    instr.phase = graph_.node(n).phase;
    instr.where = where(n);
    for (Value v : node.inputs) instr.in.push_back(inner[static_cast<size_t>(v)]);
    for (const auto& s : part.splits) {
      instr.splits.push_back(split_of(*node.signature, s.factor, s.atom, false));
    }
    set_letter_atoms(instr, factors);
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      const Value v = node.outputs[o];
      Placements p;
      for (const auto& s : part.splits) {
        const int at = s.factor < 0 ? -1
                                    : atom_in_operand(node.signature->outputs()[o],
                                                      d.dimensions.values[static_cast<size_t>(v)],
                                                      factors, s.factor, s.atom);
        p.push_back(at >= 0 ? Placement::shard(at)
                    : s.factor >= 0 && node.signature->reduced_in(s.factor, o)
                        ? Placement::partial(
                              node.signature->factors()[static_cast<size_t>(s.factor)].reduction)
                        : Placement::replicate());
      }
      inner[static_cast<size_t>(v)] =
          add_tensor(d.graph.type(v).dtype, layout_of(d.dimensions, v, std::move(p)),
                     fmt::format("%{}.{}", n, v));
      instr.out.push_back(inner[static_cast<size_t>(v)]);
    }
    program_.instrs.push_back(std::move(instr));
    for (Value v : node.outputs) {
      TensorId& t = inner[static_cast<size_t>(v)];
      for (size_t a = 0; a < part.splits.size(); ++a) {
        const bool expanded = plan_.nodes[static_cast<size_t>(n)].axes[a].expanded;
        if (!program_.tensor(t).layout.placements[a].is_partial() ||
            !combined_inside(d, v, expanded)) {
          continue;
        }
        Layout layout = program_.tensor(t).layout;
        Instr reduce;
        reduce.kind = InstrKind::kAllReduce;
        reduce.axis = static_cast<int32_t>(a);
        reduce.reduction = layout.placements[a].reduction;
        reduce.phase = graph_.node(n).phase;
        reduce.where = where(n);
        layout.placements[a] = Placement::replicate();
        reduce.in = {t};
        t = add_tensor(program_.tensor(t).dtype, std::move(layout), program_.tensor(t).name);
        reduce.out = {t};
        program_.instrs.push_back(std::move(reduce));
      }
    }
  }

  const Graph& graph_;
  const Plan& plan_;
  Program program_;
  std::vector<std::vector<TensorId>> tensors_;  // by value, form
  std::vector<SharingWish> wishes_;
};

}  // namespace

Program lower(const Graph& graph, const Plan& plan) {
  Program program = Lowering(graph, plan).run();
  plan_memory(program);
  check(program);
  return program;
}

int64_t peak_bytes(const Graph& graph, const Plan& plan) {
  Program program = Lowering(graph, plan).run();
  plan_memory(program);
  return program.arena_bytes;
}

int64_t live_bytes(const Graph& graph, const Plan& plan) {
  const Program program = Lowering(graph, plan).run();
  return most_live_bytes(buffer_lifetimes(program)) + largest_workspace(program);
}

std::vector<int64_t> stage_peak_bytes(const Graph& graph, const Plan& plan) {
  return {peak_bytes(graph, plan)};
}

std::vector<int64_t> stage_live_bytes(const Graph& graph, const Plan& plan) {
  return {live_bytes(graph, plan)};
}

}  // namespace cleave
