#include "executor/lower.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>

#include "executor/buffers.h"
#include "executor/f8_products.h"
#include "executor/fuse.h"
#include "executor/memory_layout.h"
#include "executor/stages.h"
#include "executor/typing.h"
#include "graph/error.h"
#include "planner/bundles.h"
#include "planner/expansion.h"
#include "planner/ring.h"

namespace cleave {

InstrKind kind_of(StepKind kind) {
  switch (kind) {
    case StepKind::kAllReduce: return InstrKind::kAllReduce;
    case StepKind::kAllGather: return InstrKind::kAllGather;
    case StepKind::kReduceScatter: return InstrKind::kReduceScatter;
    case StepKind::kAllToAll: return InstrKind::kAllToAll;
    case StepKind::kShift: return InstrKind::kShift;
    case StepKind::kSlice: return InstrKind::kSlice;
    case StepKind::kMask: return InstrKind::kMask;
  }
  return InstrKind::kCopy;
}

namespace {

class Lowering {
 public:
  Lowering(const Graph& graph, const Plan& plan)
      : graph_(graph), plan_(plan), stages_(graph, plan) {
    program_.mesh = plan.mesh;
    program_.schedule = stages_.schedule();
    program_.outputs.resize(graph.outputs().size());
    for (const auto& forms : plan.values) tensors_.emplace_back(forms.size(), -1);
    for (const bool made_by_update : {false, true})
      bundles_[made_by_update] = bundles(graph, plan, made_by_update);
  }

  Program run(const FuseOptions& fusing) {
    add_sources();
    for (const Section& section : stages_.sections()) {
      part_ = section.part;
      chunk_ = section.chunk;
      if (section.begins_update) add_bundles(false);
      for (const SectionItem& item : section.items) {
        if (!once_a_step(part_)) {
          chunk_ = section.chunk;
        } else {
          chunk_ = item.sends ? stages_.chunk_of_value(graph_.node(item.node).inputs[0])
                              : stages_.chunk_of(item.node);
        }
        if (item.sends) {
          add_send(item.node);
        } else if (stages_.receives(item.node)) {
          add_receive(item.node);
        } else {
          add_node(item.node);
        }
        if (part_ == Part::kBegin && !item.sends) hold(item.node);
      }
      if (section.ends_pass) finish_pass();
      if (section.part == Part::kUpdate) finish_stage(program_.stage_of(section.chunk));
    }
    if (fusing.on) fuse(program_, fusing, wishes_);
    use_f8(program_, fusing.f8, wishes_);
    assign_buffers(program_, wishes_);
    check_passes();
    return std::move(program_);
  }

 private:
  // In this section's chunk: every chunk that reads data has tensors of its own for them.
  TensorId& tensor(Value v, int32_t form) {
    if (program_.stages() > 1 && stages_.chunk_of_value(v) < 0) {
      return fed_.emplace(std::tuple(place(), v, form), -1).first->second;
    }
    return tensors_[static_cast<size_t>(v)][static_cast<size_t>(form)];
  }
  std::pair<Part, int32_t> place() const {
    return {part_ == Part::kUpdate ? Part::kUpdate : Part::kForward, chunk_};
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
    t.chunk = chunk_;
    program_.tensors.push_back(std::move(t));
    return static_cast<TensorId>(program_.tensors.size() - 1);
  }

  void add_instr(Instr instr) {
    instr.part = part_;
    instr.chunk = chunk_;
    program_.instrs.push_back(std::move(instr));
  }

  std::string name(Value v) const {
    const Source* s = graph_.source_of(v);
    return s != nullptr ? s->name : fmt::format("%{}", v);
  }

  std::string where(NodeId n) const {
    const Node& node = graph_.node(n);
    const std::string& scope = graph_.scopes()[static_cast<size_t>(node.scope)];
    return fmt::format("{}{}{}", scope, scope.empty() ? "" : " ", graph_.place(node.loc));
  }

  void add_sources() {
    for (const Source& s : graph_.sources()) {
      const int32_t chunk = stages_.chunk_of_value(s.value);
      if (chunk < 0 && program_.stages() > 1) continue;  // data are added where they are read
      chunk_ = std::max(chunk, 0);
      tensor(s.value, 0) = add_source(s);
    }
  }

  TensorId add_source(const Source& s) {
    const TensorId t = add_tensor(graph_.type(s.value).dtype, plan_.layout(s.value, 0), s.name);
    program_.sources.push_back({.kind = s.kind,
                                .name = s.name,
                                .init = s.init,
                                .roles = s.roles,
                                .tensor = t,
                                .final = -1,
                                .chunk = chunk_,
                                .part = place().first,
                                .on_host = lies_on_host(s.value)});
    return t;
  }

  // The end of a stage's update: its states' final values and its outputs are made.
  void finish_stage(int32_t stage) {
    add_bundles(true);
    for (ProgramSource& p : program_.sources) {
      if (p.kind == SourceKind::kData || program_.stage_of(p.chunk) != stage) continue;
      const Source& s = *graph_.source_named(p.name);
      chunk_ = p.chunk;
      finish_source(s, p);
    }
    for (size_t o = 0; o < graph_.outputs().size(); ++o) {
      const Output& out = graph_.outputs()[o];
      chunk_ = std::max(stages_.chunk_of_value(out.value), 0);
      if (program_.stage_of(chunk_) != stage) continue;
      program_.outputs[o] = {out.name, ensure(out.value, plan_.output_form[o])};
    }
  }

  bool lies_on_host(Value v) const {
    const int32_t s = graph_.value(v).source;
    return s >= 0 && !plan_.on_host.empty() && plan_.on_host[static_cast<size_t>(s)];
  }

  // A copy between the host's memory and the device's, on either side.
  TensorId host_copy(TensorId from, NodeId n) {
    const ProgramTensor t = program_.tensor(from);
    Instr copy;
    copy.kind = InstrKind::kCopy;
    copy.where = n == kNoNode ? t.name : where(n);
    copy.in = {from};
    copy.out = {add_tensor(t.dtype, t.layout, t.name)};
    const TensorId out = copy.out[0];
    add_instr(std::move(copy));
    return out;
  }

  // What the node makes of states that lie on the host goes back there at once, when it lies as
  // they do.
  void store(NodeId n) {
    for (Value v : graph_.node(n).outputs) {
      for (size_t s = 0; s < graph_.sources().size() && !plan_.on_host.empty(); ++s) {
        if (graph_.sources()[s].final != v || !plan_.on_host[s] || plan_.final_form[s] != 0)
          continue;
        const auto same = [&](const ProgramSource& p) {
          return p.name == graph_.sources()[s].name;
        };
        store(*std::find_if(program_.sources.begin(), program_.sources.end(), same), tensor(v, 0),
              n);
      }
    }
  }

  void store(ProgramSource& s, TensorId from, NodeId n) {
    s.final = host_copy(from, n);
    wishes_.push_back({.tensor = s.final, .target = s.tensor, .must = true});
  }

  // A state that ends in another tensor wishes to end in its own memory.
  void finish_source(const Source& s, ProgramSource& p) {
    const auto index = static_cast<size_t>(graph_.value(s.value).source);
    if (p.final >= 0) return;  // stored as soon as it was made
    if (p.on_host) {
      store(p, ensure(s.final, plan_.final_form[index]), graph_.value(s.final).producer);
      return;
    }
    p.final = s.final == s.value ? p.tensor : ensure(s.final, plan_.final_form[index]);
    if (p.final != p.tensor)
      wishes_.push_back({.tensor = p.final, .target = p.tensor, .must = true});
  }

  // What is made once a step is brought at once to where every micro-batch finds it.
  void hold(NodeId n) {
    for (Value v : graph_.node(n).outputs) {
      const auto& forms = plan_.values[static_cast<size_t>(v)];
      for (size_t f = 1; f < forms.size(); ++f) {
        if (forms[f].phase == Phase::kUpdate && !forms[f].bundled) {
          ensure(v, static_cast<int32_t>(f));
        }
      }
    }
  }

  // Makes what belongs to the forward and the backward and only the update will read: it counts for
  // every micro-batch.
  void finish_pass() {
    const bool pipeline = program_.stages() > 1;
    for (size_t v = 0; v < plan_.values.size(); ++v) {
      if (pipeline && stages_.chunk_of_value(static_cast<Value>(v)) != chunk_) continue;
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
    for (const ProgramSource& p : program_.sources) {
      if (p.kind == SourceKind::kData) continue;
      const Source* const s = graph_.source_named(p.name);
      if (s == nullptr) continue;  // what a rewrite keeps
      const NodeId producer = graph_.value(s->final).producer;
      if (producer == kNoNode || graph_.node(producer).phase == Phase::kUpdate) continue;
      const auto index = static_cast<size_t>(graph_.value(s->value).source);
      CLEAVE_ASSERT(p.final == ensured(s->final, plan_.final_form[index]),
                    "{} '{}' is not written in place by each micro-batch", name_of(s->kind),
                    s->name);
    }
  }

  TensorId ensured(Value v, int32_t f) const {
    return tensors_[static_cast<size_t>(v)][static_cast<size_t>(f)];
  }

  // The tensor of a form, made now if it is not yet there.
  TensorId ensure(Value v, int32_t f) {
    if (tensor(v, f) >= 0) return tensor(v, f);
    const Form& target = form(v, f);
    const Source* s = graph_.source_of(v);
    if (f == 0 && s != nullptr && s->kind == SourceKind::kData)
      return tensor(v, f) = add_source(*s);
    CLEAVE_ASSERT(target.from >= 0, "%{} is read before it is made", v);
    TensorId t = ensure(v, target.from);
    if (lies_on_host(v) && target.from == 0) t = host_copy(t, kNoNode);
    for (const Step& step : target.steps) t = add_step(v, t, step);
    return tensor(v, f) = t;
  }

  TensorId add_step(Value v, TensorId from, const Step& step) {
    Instr instr = step_instr(v, from, step);
    const TensorId out = instr.out[0];
    add_instr(std::move(instr));
    return out;
  }

  Instr step_instr(Value v, TensorId from, const Step& step) {
    Layout layout = program_.tensor(from).layout;
    Instr instr;
    instr.kind = kind_of(step.kind);
    instr.axis = step.axis;
    Placement& p = layout.placements[static_cast<size_t>(step.axis)];
    if (p.is_partial()) instr.reduction = p.reduction;
    p = step.to;
    instr.in = {from};
    instr.out = {add_tensor(program_.tensor(from).dtype, std::move(layout), name(v))};
    const NodeId producer = graph_.value(v).producer;
    instr.where = producer == kNoNode ? name(v) : where(producer);
    return instr;
  }

  // Runs the steps of all bundled forms of this stage; a bundle's collectives are one instruction.
  void add_bundles(bool made_by_update) {
    const int32_t stage = program_.stage_of(chunk_);
    std::vector<Bundle> all;
    for (const Bundle& bundle : bundles_[made_by_update]) {
      if (program_.stage_of(std::max(stages_.chunk_of_value(bundle[0].value), 0)) == stage)
        all.push_back(bundle);
    }
    const auto stand_at = [&](const BundledStep& b) {
      chunk_ = std::max(stages_.chunk_of_value(b.value), 0);
    };
    for (const Bundle& bundle : all) {
      for (const BundledStep& b : bundle) {
        stand_at(b);
        const int32_t from = form(b.value, b.form).from;
        if (!form(b.value, from).bundled) ensure(b.value, from);
      }
    }
    std::map<std::pair<Value, int32_t>, TensorId> at;  // the forms being made
    for (const Bundle& bundle : all) {
      Instr joined;
      for (const BundledStep& b : bundle) {
        stand_at(b);
        const Form& f = form(b.value, b.form);
        TensorId& now =
            at.emplace(std::pair(b.value, b.form), tensor(b.value, f.from)).first->second;
        Instr instr = step_instr(b.value, now, f.steps[b.step]);
        now = instr.out[0];
        if (b.step + 1 == f.steps.size()) tensor(b.value, b.form) = now;
        if (joined.out.empty()) {
          joined = std::move(instr);
          joined.bundled = true;
          if (is_collective(joined.kind)) joined.where = "bundle";
        } else {
          joined.in.push_back(instr.in[0]);
          joined.out.push_back(instr.out[0]);
        }
      }
      stand_at(bundle[0]);
      add_instr(std::move(joined));
    }
  }

  void add_send(NodeId n) {
    Instr instr;
    instr.kind = InstrKind::kSend;
    instr.node = n;
    instr.where = where(n);
    instr.peer = stages_.chunk_of(n);
    instr.in = {
        ensure(graph_.node(n).inputs[0], plan_.nodes[static_cast<size_t>(n)].input_forms[0])};
    add_instr(std::move(instr));
  }

  void add_receive(NodeId n) {
    const Value v = graph_.node(n).outputs[0];
    Instr instr;
    instr.kind = InstrKind::kReceive;
    instr.node = n;
    instr.where = where(n);
    instr.peer = stages_.chunk_of_value(graph_.node(n).inputs[0]);
    instr.out = {add_tensor(graph_.type(v).dtype, plan_.layout(v, 0), name(v))};
    tensor(v, 0) = instr.out[0];
    add_instr(std::move(instr));
  }

  void add_node(NodeId n) {
    const Node& node = graph_.node(n);
    const NodePlan& plan = plan_.nodes[static_cast<size_t>(n)];
    std::vector<TensorId> in;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      in.push_back(ensure(node.inputs[i], plan.input_forms[i]));
      if (lies_on_host(node.inputs[i]) && plan.input_forms[i] == 0)
        in.back() = host_copy(in.back(), n);
    }
    if (std::any_of(plan.axes.begin(), plan.axes.end(),
                    [](const auto& on) { return on.expanded; })) {
      add_expanded(n, in);
      return;
    }
    const auto ring = std::find_if(plan.axes.begin(), plan.axes.end(),
                                   [](const auto& on) { return on.ring >= 0; });
    if (ring != plan.axes.end()) {
      add_ring(n, static_cast<int8_t>(ring - plan.axes.begin()), in);
      return;
    }
    Instr instr = compute_instr(n, in);
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      const Value v = node.outputs[o];
      const TensorId t = add_tensor(graph_.type(v).dtype, plan_.layout(v, 0), name(v));
      instr.out.push_back(t);
      tensor(v, 0) = t;
      const Value target = node.overwrites(o);
      if (target == kNoValue) continue;
      if (!lies_on_host(target)) {
        wish(t, target, in);
        continue;
      }
      // Over what was brought from the host.
      const auto at = std::find(node.inputs.begin(), node.inputs.end(), target);
      if (at == node.inputs.end()) continue;
      const TensorId here = in[static_cast<size_t>(at - node.inputs.begin())];
      wishes_.push_back({.tensor = t, .target = here, .in_place = true});
    }
    add_instr(std::move(instr));
    store(n);
  }

  Instr compute_instr(NodeId n, const std::vector<TensorId>& in) const {
    const Node& node = graph_.node(n);
    Instr instr;
    instr.op = node.op;
    instr.signature = node.signature;
    instr.attrs = node.attrs;
    instr.node = n;
    instr.where = where(n);
    instr.in = in;
    for (const MemberSplit::OnAxis& on : plan_.nodes[static_cast<size_t>(n)].axes) {
      instr.splits.push_back(split_of(*node.signature, on.factor, on.atom, on.partial));
    }
    set_letter_atoms(instr, plan_.dimensions->factors[static_cast<size_t>(n)]);
    return instr;
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

  // One part of the factor that passes round after the other. The next part is sent for before this
  // one is worked on.
  void add_ring(NodeId n, int8_t axis, std::vector<TensorId> in) {
    const Node& node = graph_.node(n);
    const MemberSplit::OnAxis& on = plan_.nodes[static_cast<size_t>(n)].axes[size_t(axis)];
    const auto parts = static_cast<int32_t>(plan_.mesh.axes[static_cast<size_t>(axis)].size);
    std::vector<size_t> moving_in, moving_out;
    for (size_t i = 0; i < in.size(); ++i) {
      if (carries(node.signature->inputs()[i], on.ring)) moving_in.push_back(i);
    }
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      if (carries(node.signature->outputs()[o], on.ring)) moving_out.push_back(o);
    }
    std::vector<TensorId> merged;
    for (int32_t step = 0; step < parts; ++step) {
      Instr instr = compute_instr(n, in);
      instr.ring = {axis, node.signature->factors()[static_cast<size_t>(on.ring)].letter, step};
      if (step + 1 < parts) shift(n, axis, moving_in, in);
      for (size_t o = 0; o < node.outputs.size(); ++o) {
        const Value v = node.outputs[o];
        instr.out.push_back(add_tensor(graph_.type(v).dtype, plan_.layout(v, 0), name(v)));
        const bool moves = carries(node.signature->outputs()[o], on.ring);
        program_.tensors.back().ring = {axis, step, 1, moves};
      }
      const std::vector<TensorId> found = instr.out;
      add_instr(std::move(instr));
      merged = step == 0 ? found : merge(n, axis, step, merged, found);
      shift(n, axis, moving_out, merged);
    }
    for (size_t o = 0; o < node.outputs.size(); ++o) tensor(node.outputs[o], 0) = merged[o];
  }

  // Sends these of the tensors one rank on.
  void shift(NodeId n, int8_t axis, const std::vector<size_t>& which,
             std::vector<TensorId>& tensors) {
    if (which.empty()) return;
    Instr instr;
    instr.kind = InstrKind::kShift;
    instr.axis = axis;
    instr.where = where(n);
    for (size_t i : which) {
      const ProgramTensor from = program_.tensor(tensors[i]);
      instr.in.push_back(tensors[i]);
      tensors[i] = add_tensor(from.dtype, from.layout, from.name);
      program_.tensors.back().ring = shifted(from.ring, axis, program_.mesh);
      instr.out.push_back(tensors[i]);
    }
    add_instr(std::move(instr));
  }

  // The results of all steps so far, of those before and of the last one.
  std::vector<TensorId> merge(NodeId n, int8_t axis, int32_t step,
                              const std::vector<TensorId>& before,
                              const std::vector<TensorId>& found) {
    const Node& node = graph_.node(n);
    std::vector<TensorId> result(before.size(), -1);
    for (const RingMerge& m : ring_merges(node)) {
      Instr instr;
      instr.op = node.op->merge;
      instr.signature = m.signature;
      instr.attrs = node.attrs;
      instr.node = n;
      instr.where = where(n);
      instr.ring = {axis, 0, step};
      for (int8_t f : m.factors) {
        instr.letter_atoms.emplace_back();
        for (const Atom& a : plan_.dimensions->factors[static_cast<size_t>(n)][size_t(f)]) {
          instr.letter_atoms.back().push_back(a.size);
        }
      }
      for (const MemberSplit::OnAxis& on : plan_.nodes[static_cast<size_t>(n)].axes) {
        const auto letter = [&](int f) {
          return f < 0 ? 0 : node.signature->factors()[static_cast<size_t>(f)].letter;
        };
        Split split;
        for (const auto& [f, atom] :
             {std::pair(on.factor, on.atom), std::pair(on.ring, int8_t{0})}) {
          if (f >= 0 && m.signature->factor(static_cast<char>(letter(f))) >= 0) {
            split = {static_cast<char>(letter(f)), atom, false};
          }
        }
        instr.splits.push_back(split);
      }
      for (const auto* list : {&before, &found}) {
        for (size_t o : m.outputs) instr.in.push_back((*list)[o]);
      }
      for (size_t a = 0; a < instr.splits.size(); ++a) {
        const ProgramTensor& t = program_.tensor(instr.in[0]);
        if (t.layout.placements[a].is_partial()) instr.splits[a].partial = true;
      }
      for (size_t o : m.outputs) {
        const ProgramTensor from = program_.tensor(before[o]);
        result[o] = add_tensor(from.dtype, from.layout, from.name);
        program_.tensors.back().ring = merged_ring(program_.tensor(found[o]).ring, program_.mesh);
        instr.out.push_back(result[o]);
        wishes_.push_back({.tensor = result[o], .target = before[o], .in_place = true});
      }
      add_instr(std::move(instr));
    }
    return result;
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
    add_instr(std::move(instr));
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
        reduce.where = where(n);
        layout.placements[a] = Placement::replicate();
        reduce.in = {t};
        t = add_tensor(program_.tensor(t).dtype, std::move(layout), program_.tensor(t).name);
        reduce.out = {t};
        add_instr(std::move(reduce));
      }
    }
  }

  const Graph& graph_;
  const Plan& plan_;
  const Stages stages_;
  Program program_;
  std::vector<std::vector<TensorId>> tensors_;  // by value, form
  // Of data of a pipeline, by the chunk, and whether in its update, too.
  std::map<std::tuple<std::pair<Part, int32_t>, Value, int32_t>, TensorId> fed_;
  std::vector<SharingWish> wishes_;
  std::array<std::vector<Bundle>, 2> bundles_;  // of what the update does not make, and makes
  Part part_ = Part::kForward;                  // of the section that is being lowered
  int32_t chunk_ = 0;                           // whose instructions and tensors are added now
};

}  // namespace

bool on_one_gpu(const Plan& plan) {
  return plan.cluster.device.gpu && plan.mesh.size() == 1 && plan.pipeline.stages == 1;
}

Program lower_unplaced(const Graph& graph, const Plan& plan,
                       const std::vector<std::string>& no_fuse) {
  const bool gpu = on_one_gpu(plan);
  Program program = Lowering(graph, plan).run(gpu ? FuseOptions(true, no_fuse) : FuseOptions());
  program.gpu = gpu;
  return program;
}

Program lower(const Graph& graph, const Plan& plan, const FuseOptions& fusing) {
  Program program = Lowering(graph, plan).run(fusing);
  plan_memory(program);
  check(program);
  return program;
}

std::vector<int64_t> program_peak_bytes(Program program) {
  plan_memory(program);
  std::vector<int64_t> bytes;
  for (const StageMemory& m : program.memory) bytes.push_back(m.arena_bytes);
  return bytes;
}

std::vector<int64_t> stage_peak_bytes(const Graph& graph, const Plan& plan) {
  return program_peak_bytes(lower_unplaced(graph, plan));
}

std::vector<int64_t> stage_live_bytes(const Graph& graph, const Plan& plan) {
  return least_peak_bytes(lower_unplaced(graph, plan));
}

int64_t peak_bytes(const Graph& graph, const Plan& plan) {
  const std::vector<int64_t> stages = stage_peak_bytes(graph, plan);
  return *std::max_element(stages.begin(), stages.end());
}

int64_t live_bytes(const Graph& graph, const Plan& plan) {
  const std::vector<int64_t> stages = stage_live_bytes(graph, plan);
  return *std::max_element(stages.begin(), stages.end());
}

}  // namespace cleave
