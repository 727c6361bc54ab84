#include "planner/family.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <unordered_map>

#include "graph/error.h"
#include "planner/remake.h"
#include "planner/ring.h"

namespace cleave {
namespace {

char small(char letter) { return static_cast<char>(std::tolower(letter)); }

template <class T>
void append(std::string& key, const T& x) {
  key.append(reinterpret_cast<const char*>(&x), sizeof x);
}

// Sizes of a node's factors on one rank; nothing when a split does not divide.
std::optional<std::vector<int64_t>> local_extents(const std::vector<std::vector<Atom>>& factors,
                                                  const MemberSplit& s, const Mesh& mesh) {
  std::vector<int64_t> sizes;
  for (size_t f = 0; f < factors.size(); ++f) {
    int64_t size = 1;
    for (size_t k = 0; k < factors[f].size(); ++k) {
      int64_t atom = factors[f][k].size;
      for (size_t a = 0; a < s.axes.size(); ++a) {
        const bool split =
            s.axes[a].factor == static_cast<int>(f) && s.axes[a].atom == static_cast<int>(k);
        if (!split && s.axes[a].ring != static_cast<int>(f)) continue;
        if (atom % mesh.axes[a].size != 0) return std::nullopt;
        atom /= mesh.axes[a].size;
      }
      size *= atom;
    }
    sizes.push_back(size);
  }
  return sizes;
}

}  // namespace

std::string_view name_of(AxisRole role) {
  switch (role) {
    case AxisRole::kAny: return "any";
    case AxisRole::kData: return "dp";
    case AxisRole::kInner: return "tp";
    case AxisRole::kContext: return "cp";
    case AxisRole::kExpert: return "ep";
  }
  return "?";
}

std::optional<AxisRole> role_named(std::string_view name) {
  for (AxisRole r :
       {AxisRole::kAny, AxisRole::kData, AxisRole::kInner, AxisRole::kContext, AxisRole::kExpert}) {
    if (name_of(r) == name) return r;
  }
  return std::nullopt;
}

bool contracts(const Node& node) {
  for (size_t f = 0; f < node.extents.size(); ++f) {
    if (node.signature->factors()[f].whole) continue;
    for (size_t o = 0; o < node.outputs.size(); ++o) {
      if (node.signature->reduced_in(static_cast<int>(f), o)) return true;
    }
  }
  return false;
}

int atom_in_operand(const OperandDims& dims, const std::vector<ValueAtom>& atoms,
                    const std::vector<std::vector<Atom>>& factors, int factor, int atom) {
  for (size_t d = 0; d < dims.size(); ++d) {
    int at = 0;
    while (atoms[static_cast<size_t>(at)].dim != static_cast<int>(d)) ++at;
    for (int8_t f : dims[d]) {
      if (f == factor) return at + atom;
      const auto& own = factors[static_cast<size_t>(f)];
      // A factor of size 1 inside a compound has no atom in the value.
      const bool vanishes = dims[d].size() > 1 && own.size() == 1 && own[0].size == 1;
      at += vanishes ? 0 : static_cast<int>(own.size());
    }
  }
  return -1;
}

Families::Families(const Graph& graph, const Dimensions& dimensions, const Cluster& cluster,
                   const Mesh& mesh, Restrictions restrictions)
    : graph_(graph),
      dims_(dimensions),
      cluster_(cluster),
      mesh_(mesh),
      restrictions_(std::move(restrictions)),
      adding_(addings(graph)) {
  std::vector<bool> from_data(graph.values().size(), false);
  for (const Source& source : graph.sources()) {
    from_data[static_cast<size_t>(source.value)] = source.kind == SourceKind::kData;
  }
  for (const Node& node : graph.nodes()) {
    reads_data_.push_back(std::any_of(node.inputs.begin(), node.inputs.end(),
                                      [&](Value v) { return from_data[static_cast<size_t>(v)]; }));
    for (Value v : node.outputs) from_data[static_cast<size_t>(v)] = reads_data_.back();
  }
  const std::vector<NodeId> repeats = repeated_nodes(graph);
  const std::vector<bool> once = made_once(graph);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const NodeId follows = graph.nodes()[n].follows;
    // What every micro-batch does is not tied to what a step does once.
    untied_.push_back(follows != kNoNode && once[static_cast<size_t>(follows)]);
    if (follows == kNoNode || untied_.back()) {
      family_of_.push_back(static_cast<int32_t>(families_.size()));
      families_.emplace_back();
    } else {
      family_of_.push_back(family_of_[static_cast<size_t>(follows)]);
    }
    Family& family = families_[static_cast<size_t>(family_of_.back())];
    member_of_.push_back(static_cast<int32_t>(family.members.size()));
    // What the backward computes again is split as it was, partial sums too.
    leads_.push_back(repeats[n] == kNoNode ? family.members.empty()
                                           : leads_[static_cast<size_t>(repeats[n])]);
    family.members.push_back(static_cast<NodeId>(n));
  }
  std::unordered_map<std::string, int32_t> known;
  for (Family& family : families_) {
    const auto [at, added] = known.emplace(key(family), static_cast<int32_t>(kinds_.size()));
    family.kind = at->second;
    if (added) kinds_.push_back(build(family));
  }
}

// Everything that build() reads, so that equal keys mean equal kinds.
std::string Families::key(const Family& family) const {
  std::string k;
  for (NodeId n : family.members) {
    const Node& node = graph_.node(n);
    append(k, node.op);
    append(k, node.signature);
    k += leads_[static_cast<size_t>(n)] ? 'l' : 'f';
    append(k, adding_[static_cast<size_t>(n)]);
    // Whether a view is one in fact.
    k += !node.inputs.empty() &&
                 graph_.value(node.outputs[0]).storage == graph_.value(node.inputs[0]).storage
             ? 'v'
             : 'c';
    for (const auto& [name, value] : node.attrs.items()) {
      // Texts name random streams and types; types show in the operands.
      if (const auto* i = std::get_if<int64_t>(&value)) k += name, append(k, *i);
      if (const auto* r = std::get_if<double>(&value)) k += name, append(k, *r);
    }
    for (const auto* list : {&node.inputs, &node.outputs}) {
      for (Value v : *list) {
        append(k, graph_.type(v).dtype);
        for (const ValueAtom& a : dims_.values[static_cast<size_t>(v)])
          append(k, a.size), append(k, a.dim);
        k += ';';
      }
    }
    const auto& factors = dims_.factors[static_cast<size_t>(n)];
    for (size_t f = 0; f < factors.size(); ++f) {
      k += dims_.contradicts[static_cast<size_t>(n)][f] ? '!' : ',';
      for (const Atom& a : factors[f]) {
        append(k, a.size);
        k += a.dimension_class == restrictions_.sequence ? 's' : '-';
        for (size_t axis = 0; axis < mesh_.axes.size(); ++axis) {
          k += allowed(family.members[0], axis, a.dimension_class) ? '+' : '-';
        }
      }
    }
  }
  return k;
}

bool Families::keeps_state(NodeId leader) const {
  const Node& node = graph_.node(leader);
  if (node.phase == Phase::kUpdate || !reads_data_[static_cast<size_t>(leader)]) return true;
  if (untied_[static_cast<size_t>(leader)]) return true;
  const Source* sum = node.inputs.empty() ? nullptr : graph_.source_of(node.inputs[0]);
  return sum != nullptr && sum->kind == SourceKind::kAccumulator;
}

bool Families::sensible(NodeId leader, const std::vector<AxisOption>& choice) const {
  if (choice.size() <= 2 || !keeps_state(leader)) return true;
  const auto& roles = restrictions_.roles;
  const auto data = std::find(roles.begin(), roles.end(), AxisRole::kData);
  if (data == roles.end()) return true;
  const AxisOption& there = choice[static_cast<size_t>(data - roles.begin())];
  for (size_t a = 0; a < choice.size(); ++a) {
    if (mesh_.axes[a].size == 1 || choice[a] == there) continue;
    if (roles[a] == AxisRole::kContext) return false;
    if (roles[a] != AxisRole::kExpert) continue;
    if (choice[a].kind != AxisOption::Kind::kFactor) return false;
    const auto& factors = dims_.factors[static_cast<size_t>(leader)];
    for (size_t f = 0; f < factors.size(); ++f) {
      if (small(graph_.node(leader).signature->factors()[f].letter) != choice[a].letter) continue;
      const ClassId c = factors[f][static_cast<size_t>(choice[a].atom)].dimension_class;
      const auto& indexed = restrictions_.indexed;
      if (std::find(indexed.begin(), indexed.end(), c) == indexed.end()) return false;
    }
  }
  return true;
}

bool Families::allowed(NodeId leader, size_t axis, ClassId c) const {
  const Restrictions& r = restrictions_;
  const Node& node = graph_.node(leader);
  // Roles speak of the model's work on its data; parameters and optimizer states may be kept, cast
  // and updated in whatever parts fit best.
  if (keeps_state(leader)) return true;
  switch (r.roles[axis]) {
    case AxisRole::kAny: return true;
    case AxisRole::kData: return c == r.batch;
    case AxisRole::kInner:
      if (c == r.batch) return false;
      if (!contracts(node) && c == r.sequence) return true;
      return c != r.sequence && std::find(r.width.begin(), r.width.end(), c) == r.width.end();
    case AxisRole::kContext: return c == r.sequence;
    case AxisRole::kExpert:
      return c == r.batch || std::find(r.indexed.begin(), r.indexed.end(), c) != r.indexed.end();
  }
  return true;
}

std::vector<AxisOption> Families::options(const Family& family, size_t axis) const {
  const NodeId leader = family.members[0];
  const Node& node = graph_.node(leader);
  std::vector<AxisOption> result = {{}};
  if (mesh_.axes[axis].size == 1) return result;  // nothing to split
  // Integers are never partial, so what is made of them alone is not either.
  const auto some_float = [&](const std::vector<Value>& values) {
    return std::any_of(values.begin(), values.end(),
                       [&](Value v) { return is_float(graph_.type(v).dtype); });
  };
  const bool linear = std::all_of(family.members.begin(), family.members.end(), [&](NodeId n) {
    const Node& member = graph_.node(n);
    return member.op->linear && some_float(member.inputs) && some_float(member.outputs);
  });
  if (linear) {
    result.push_back({.kind = AxisOption::Kind::kPartialLeader});
    if (family.members.size() > 1) result.push_back({.kind = AxisOption::Kind::kPartialFollowers});
  }
  const auto& factors = dims_.factors[static_cast<size_t>(leader)];
  for (size_t f = 0; f < factors.size(); ++f) {
    for (size_t k = 0; k < factors[f].size(); ++k) {
      const Atom& atom = factors[f][k];
      if (atom.size % mesh_.axes[axis].size != 0) continue;
      if (!allowed(leader, axis, atom.dimension_class)) continue;
      result.push_back({.kind = AxisOption::Kind::kFactor,
                        .letter = small(node.signature->factors()[f].letter),
                        .atom = static_cast<int8_t>(k)});
      const bool context = restrictions_.roles[axis] == AxisRole::kContext;
      if (node.op->merge == nullptr || !context || node.signature->factors()[f].whole) continue;
      result.push_back(result.back());
      result.back().kind = AxisOption::Kind::kRing;
    }
  }
  return result;
}

FamilyKind Families::build(const Family& family) const {
  FamilyKind kind;
  kind.members.resize(family.members.size());
  std::vector<std::vector<AxisOption>> per_axis;
  for (size_t a = 0; a < mesh_.axes.size(); ++a) per_axis.push_back(options(family, a));
  std::vector<size_t> pick(per_axis.size(), 0);
  while (true) {
    std::vector<AxisOption> choice;
    for (size_t a = 0; a < pick.size(); ++a) choice.push_back(per_axis[a][pick[a]]);
    std::vector<MemberSplit> splits;
    double seconds = 0;
    const bool worth = sensible(family.members[0], choice);
    for (size_t m = 0; worth && m < family.members.size(); ++m) {
      auto s = split(family.members[m], leads_[static_cast<size_t>(family.members[m])], choice);
      if (!s) break;
      seconds += s->seconds;
      splits.push_back(std::move(*s));
    }
    if (splits.size() == family.members.size()) {
      kind.choices.push_back(std::move(choice));
      kind.seconds.push_back(seconds);
      for (size_t m = 0; m < splits.size(); ++m) kind.members[m].push_back(std::move(splits[m]));
    }
    size_t a = pick.size();
    while (a > 0 && ++pick[a - 1] == per_axis[a - 1].size()) pick[--a] = 0;
    if (a == 0) break;
  }
  CLEAVE_ASSERT(!kind.choices.empty(), "{} cannot even be replicated",
                graph_.node(family.members[0]).op->name);
  return kind;
}

std::optional<MemberSplit> Families::split(NodeId n, bool leader,
                                           const std::vector<AxisOption>& choice) const {
  const Node& node = graph_.node(n);
  const auto& factors = dims_.factors[static_cast<size_t>(n)];
  MemberSplit s;
  for (const AxisOption& option : choice) {
    MemberSplit::OnAxis on;
    on.partial = option.kind ==
                 (leader ? AxisOption::Kind::kPartialLeader : AxisOption::Kind::kPartialFollowers);
    if (option.kind == AxisOption::Kind::kRing && !set_ring(n, option, on)) return std::nullopt;
    for (size_t f = 0; f < factors.size() && option.kind == AxisOption::Kind::kFactor; ++f) {
      const Factor& factor = node.signature->factors()[f];
      if (small(factor.letter) != option.letter) continue;
      if (static_cast<size_t>(option.atom) >= factors[f].size()) return std::nullopt;
      if (dims_.contradicts[static_cast<size_t>(n)][f]) return std::nullopt;
      if (factor.whole && node.op->split == nullptr) return std::nullopt;
      on.factor = static_cast<int8_t>(f);
      on.atom = option.atom;
      on.expanded = factor.whole;
    }
    s.axes.push_back(on);
  }
  // One ring, of a factor that no other axis splits, and nothing written out.
  for (const MemberSplit::OnAxis& ring : s.axes) {
    if (ring.ring < 0) continue;
    for (const MemberSplit::OnAxis& other : s.axes) {
      if (&other != &ring &&
          (other.ring >= 0 || other.expanded || other.partial || other.factor == ring.ring)) {
        return std::nullopt;
      }
    }
  }
  if (!set_placements(n, s) || !set_seconds(n, s)) return std::nullopt;
  return s;
}

bool Families::set_ring(NodeId n, const AxisOption& option, MemberSplit::OnAxis& on) const {
  const Node& node = graph_.node(n);
  const auto& factors = dims_.factors[static_cast<size_t>(n)];
  int stays = -1;
  for (size_t f = 0; f < factors.size(); ++f) {
    if (small(node.signature->factors()[f].letter) == option.letter) stays = static_cast<int>(f);
  }
  const int moves = node.op->merge == nullptr ? -1 : node.signature->factor(node.op->merges);
  if (!can_pass_round(node, stays, moves)) return false;
  const auto& contradicts = dims_.contradicts[static_cast<size_t>(n)];
  if (static_cast<size_t>(option.atom) >= factors[static_cast<size_t>(stays)].size() ||
      factors[static_cast<size_t>(moves)].size() != 1 || contradicts[static_cast<size_t>(stays)] ||
      contradicts[static_cast<size_t>(moves)]) {
    return false;
  }
  on.factor = static_cast<int8_t>(stays);
  on.atom = option.atom;
  on.ring = static_cast<int8_t>(moves);
  return true;
}

bool Families::set_placements(NodeId n, MemberSplit& s) const {
  const Node& node = graph_.node(n);
  const auto& factors = dims_.factors[static_cast<size_t>(n)];
  const auto place = [&](Value v, const OperandDims& dims, int output) {
    Placements p;
    for (const MemberSplit::OnAxis& on : s.axes) {
      Placement q;
      const int at = on.factor < 0 ? -1
                                   : atom_in_operand(dims, dims_.values[static_cast<size_t>(v)],
                                                     factors, on.factor, on.atom);
      const int moving = on.ring < 0 ? -1
                                     : atom_in_operand(dims, dims_.values[static_cast<size_t>(v)],
                                                       factors, on.ring, 0);
      if (on.partial && is_float(graph_.type(v).dtype)) q = Placement::partial();
      if (at >= 0 || moving >= 0) {
        q = Placement::shard(std::max(at, moving));
      } else if (output >= 0 && on.factor >= 0 && !on.expanded &&
                 node.signature->in_inputs(on.factor)) {
        q = Placement::partial(node.signature->factors()[static_cast<size_t>(on.factor)].reduction);
      }
      p.push_back(q);
    }
    return p;
  };
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    s.inputs.push_back(place(node.inputs[i], node.signature->inputs()[i], -1));
  }
  for (size_t o = 0; o < node.outputs.size(); ++o) {
    s.outputs.push_back(place(node.outputs[o], node.signature->outputs()[o], static_cast<int>(o)));
    // Partial results of different kinds do not mix in one value.
    const Placement* first = nullptr;
    for (const Placement& p : s.outputs.back()) {
      if (!p.is_partial()) continue;
      if (first != nullptr && first->reduction != p.reduction) return false;
      first = &p;
    }
  }
  return true;
}

bool Families::set_seconds(NodeId n, MemberSplit& s) const {
  const Node& node = graph_.node(n);
  const auto extents = local_extents(dims_.factors[static_cast<size_t>(n)], s, mesh_);
  if (!extents) return false;
  if (std::any_of(s.axes.begin(), s.axes.end(), [](const auto& on) { return on.expanded; })) {
    return expanded_seconds(n, s);
  }
  std::vector<TensorType> in, out;
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    in.push_back(
        {graph_.type(node.inputs[i]).dtype, shape_of(node.signature->inputs()[i], *extents)});
  }
  for (size_t o = 0; o < node.outputs.size(); ++o) {
    out.push_back(
        {graph_.type(node.outputs[o]).dtype, shape_of(node.signature->outputs()[o], *extents)});
  }
  if (node.op->transfer) {  // each rank sends to its twin in another stage
    double bytes = 0;
    for (const TensorType& t : out) bytes += static_cast<double>(numel(t.shape) * size_of(t.dtype));
    s.seconds = transfer_seconds(cluster_, mesh_, 0, 1, bytes);
    return true;
  }
  if (adding_[static_cast<size_t>(n)] == Adding::kWidens) {
    s.seconds = 0;
    return true;
  }
  s.seconds = op_seconds(cluster_, *node.op, {*node.signature, *extents, node.attrs, in}, out);
  if (adding_[static_cast<size_t>(n)] == Adding::kAdds) {
    const double again = 2 * static_cast<double>(numel(out[0].shape) * size_of(out[0].dtype));
    s.seconds = std::min(s.seconds, again / cluster_.device.bandwidth);
  }
  if (node.attrs.integer_or("causal", 0) != 0) {
    Attrs unmasked = node.attrs;
    unmasked.set("causal", int64_t{0});
    s.seconds += unbalanced(n, s) *
                 (op_seconds(cluster_, *node.op, {*node.signature, *extents, unmasked, in}, out) -
                  s.seconds);
  }
  for (size_t a = 0; a < s.axes.size(); ++a) {
    if (s.axes[a].ring >= 0) add_ring_seconds(n, a, *extents, in, out, s);
  }
  return true;
}

// Of what a causal mask leaves out on average, the share that the slowest rank has to do: with the
// sequence in n parts the last queries see, and the first keys are seen by, (2 - 1/n) times their
// share. In a ring that holds for every part but the rank's own.
double Families::unbalanced(NodeId n, const MemberSplit& s) const {
  double parts = 1;
  for (size_t a = 0; a < s.axes.size(); ++a) {
    const MemberSplit::OnAxis& on = s.axes[a];
    if (on.factor < 0) continue;
    const Atom& atom =
        dims_.factors[static_cast<size_t>(n)][static_cast<size_t>(on.factor)][size_t(on.atom)];
    if (atom.dimension_class != restrictions_.sequence) continue;
    parts *= static_cast<double>(mesh_.axes[a].size);
  }
  return 1 - 1 / parts;
}

// All ranks compute a part, merge its results with those so far, and pass on what moves: operands
// before the last part, results after each, so that they end where they began.
void Families::add_ring_seconds(NodeId n, size_t axis, const std::vector<int64_t>& extents,
                                const std::vector<TensorType>& in,
                                const std::vector<TensorType>& out, MemberSplit& s) const {
  const Node& node = graph_.node(n);
  const int64_t parts = mesh_.axes[axis].size;
  s.seconds *= static_cast<double>(parts);
  const auto moving_bytes = [&](const std::vector<TensorType>& types,
                                const std::vector<OperandDims>& dims) {
    double bytes = 0;
    for (size_t i = 0; i < types.size(); ++i) {
      if (!carries(dims[i], s.axes[axis].ring)) continue;
      bytes += static_cast<double>(numel(types[i].shape) * size_of(types[i].dtype));
    }
    return bytes;
  };
  const auto shift = [&](double bytes, int64_t times) {
    if (bytes == 0) return;
    Step step{.kind = StepKind::kShift, .axis = static_cast<int8_t>(axis), .to = {}};
    step.bytes = bytes;
    step.seconds = collective_seconds(step.kind, bytes, cluster_, mesh_, axis);
    s.inner.insert(s.inner.end(), static_cast<size_t>(times), step);
    s.seconds += static_cast<double>(times) * step.seconds;
  };
  shift(moving_bytes(in, node.signature->inputs()), parts - 1);
  shift(moving_bytes(out, node.signature->outputs()), parts);
  for (const RingMerge& merge : ring_merges(node)) {
    std::vector<int64_t> sizes;
    for (int8_t f : merge.factors) sizes.push_back(extents[static_cast<size_t>(f)]);
    std::vector<TensorType> some, both;
    for (size_t o : merge.outputs) some.push_back(out[o]);
    both = some;
    both.insert(both.end(), some.begin(), some.end());
    s.seconds +=
        static_cast<double>(parts - 1) *
        op_seconds(cluster_, *node.op->merge, {*merge.signature, sizes, node.attrs, both}, some);
  }
}

bool Families::expanded_seconds(NodeId n, MemberSplit& s) const {
  const Node& node = graph_.node(n);
  const std::vector<TensorType> in = graph_.input_types(node);
  std::vector<std::vector<ValueAtom>> atoms;
  for (Value v : node.inputs) atoms.push_back(dims_.values[static_cast<size_t>(v)]);
  char letter = 0;
  int64_t shards = 1;
  for (size_t a = 0; a < s.axes.size(); ++a) {
    if (!s.axes[a].expanded) continue;
    const char l = node.signature->factors()[static_cast<size_t>(s.axes[a].factor)].letter;
    if (letter != 0 && letter != l) return false;  // one whole factor at a time
    letter = l;
    shards *= mesh_.axes[a].size;
  }
  const auto d = expand_op(*node.op, Graph::call(node, in), letter, shards, atoms);
  if (!d) return false;
  // The class of each axis inside the expansion, found through an input.
  std::vector<ClassId> axis_class(s.axes.size(), -1);
  for (size_t a = 0; a < s.axes.size(); ++a) {
    if (s.axes[a].factor < 0) continue;
    for (size_t i = 0; i < node.inputs.size() && axis_class[a] < 0; ++i) {
      if (s.inputs[i][a].is_shard()) {
        axis_class[a] =
            d->dimensions.values[i][static_cast<size_t>(s.inputs[i][a].atom)].dimension_class;
      }
    }
    if (axis_class[a] < 0) return false;
  }
  std::set<std::pair<Value, size_t>> left_partial;  // inner values, on these axes
  for (const ExpandedNode& part : split_expansion(*d, axis_class)) {
    const Node& inner = d->graph.node(part.node);
    MemberSplit m;
    for (const auto& x : part.splits) m.axes.push_back({x.factor, x.atom, false, false});
    const auto& factors = d->dimensions.factors[static_cast<size_t>(part.node)];
    const auto extents = local_extents(factors, m, mesh_);
    if (!extents) return false;
    std::vector<TensorType> inner_in, inner_out;
    for (size_t i = 0; i < inner.inputs.size(); ++i) {
      inner_in.push_back(
          {d->graph.type(inner.inputs[i]).dtype, shape_of(inner.signature->inputs()[i], *extents)});
    }
    for (size_t o = 0; o < inner.outputs.size(); ++o) {
      inner_out.push_back({d->graph.type(inner.outputs[o]).dtype,
                           shape_of(inner.signature->outputs()[o], *extents)});
      const double bytes =
          static_cast<double>(numel(inner_out[o].shape) * size_of(inner_out[o].dtype));
      for (size_t a = 0; a < m.axes.size(); ++a) {
        if (m.axes[a].factor < 0) continue;
        if (inner.signature->factors()[static_cast<size_t>(m.axes[a].factor)].whole) return false;
        if (!inner.signature->reduced_in(m.axes[a].factor, o)) continue;
        if (!combined_inside(*d, inner.outputs[o], s.axes[a].expanded)) {
          left_partial.emplace(inner.outputs[o], a);
          continue;
        }
        const double ranks = static_cast<double>(mesh_.axes[a].size);
        Step step{.kind = StepKind::kAllReduce, .axis = static_cast<int8_t>(a), .to = {}};
        step.bytes = 2 * bytes * (ranks - 1) / ranks;
        step.seconds = collective_seconds(step.kind, step.bytes, cluster_, mesh_, a);
        s.inner.push_back(step);
        s.seconds += step.seconds;
      }
    }
    s.seconds += op_seconds(cluster_, *inner.op,
                            {*inner.signature, *extents, inner.attrs, inner_in}, inner_out);
  }
  // The parts must end as the op itself would.
  for (size_t o = 0; o < s.outputs.size(); ++o) {
    for (size_t a = 0; a < s.axes.size(); ++a) {
      if (s.outputs[o][a].is_partial() != left_partial.contains({d->outputs[o], a})) return false;
    }
  }
  return true;
}

}  // namespace cleave
