#include "tests/support/brute_force.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>

namespace cleave::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The ways that no other beats in both, by ascending bytes.
std::vector<Way> best_ways(std::vector<Way> ways) {
  std::sort(ways.begin(), ways.end(), [](const Way& a, const Way& b) {
    return std::pair(a.bytes, a.seconds) < std::pair(b.bytes, b.seconds);
  });
  std::vector<Way> best;
  for (const Way& w : ways) {
    if (best.empty() || w.seconds < best.back().seconds) best.push_back(w);
  }
  return best;
}

Restrictions unrestricted(const Mesh& mesh) {
  Restrictions r;
  r.roles.assign(mesh.axes.size(), AxisRole::kAny);
  return r;
}

}  // namespace

BruteForce::BruteForce(const Graph& graph, const Cluster& cluster, const Mesh& mesh,
                       SpaceRules rules)
    : graph_(graph),
      rules_(rules),
      dims_(find_dimensions(graph)),
      families_(graph, dims_, cluster, mesh, unrestricted(mesh)),
      values_(graph.values().size()) {
  for (const Family& f : families_.all()) {
    allowed_.emplace_back(families_.kind(f.kind).choices.size());
    std::iota(allowed_.back().begin(), allowed_.back().end(), 0);
  }
  find_once();
  for (size_t v = 0; v < values_.size(); ++v) describe(static_cast<Value>(v), cluster, mesh);
  for (const Source& s : graph.sources()) {
    if (s.final != s.value) values_[static_cast<size_t>(s.final)].next_of = s.value;
  }
  // Values kept for the backward are priced as long as they fit in their storage, which is made by
  // its first value: then no view counts more than the whole. Sources are held anyway.
  std::map<int32_t, int64_t> room;  // elements, by storage
  for (const ValueInfo& info : graph.values()) {
    room.emplace(info.storage, info.source >= 0 ? 0 : numel(info.type.shape));
  }
  for (size_t v = 0; v < values_.size(); ++v) {
    const ValueInfo& info = graph.values()[v];
    values_[v].crosses = info.producer != kNoNode &&
                         graph.node(info.producer).phase == Phase::kForward &&
                         !values_[v].readers[1].empty();
    int64_t& left = room[info.storage];
    const bool fits = numel(info.type.shape) <= left;
    values_[v].saved = values_[v].crosses && !values_[v].once && fits;
    if (values_[v].saved || values_[v].once) left -= numel(info.type.shape);
  }
  for (size_t v = 0; v < values_.size(); ++v) find_held(static_cast<Value>(v));
  group_values();
}

double BruteForce::assignments() const {
  double n = 1;
  for (const auto& a : allowed_) n *= static_cast<double>(a.size());
  return n;
}

void BruteForce::restrict_to(double most, std::mt19937& random) {
  while (assignments() > most) {
    auto largest = std::max_element(allowed_.begin(), allowed_.end(),
                                    [](auto& a, auto& b) { return a.size() < b.size(); });
    largest->erase(largest->begin() + static_cast<int64_t>(random() % largest->size()));
  }
}

Preferences BruteForce::preferences() const {
  Preferences p;
  p.choice = [this](NodeId leader, const std::vector<AxisOption>& choice) {
    for (int c : allowed_[static_cast<size_t>(families_.family_of(leader))]) {
      if (families_.kind_of(leader).choices[static_cast<size_t>(c)] == choice) return 0.0;
    }
    return kInfinity;
  };
  return p;
}

double BruteForce::cheapest() {
  double best = kInfinity;
  enumerate([&](const Parts& parts, double seconds) {
    for (const auto* ways : parts) seconds += ways->back().seconds;
    best = std::min(best, seconds);
  });
  return best;
}

std::vector<Way> BruteForce::frontier() {
  std::vector<Way> best;
  enumerate([&](const Parts& parts, double seconds) {
    std::vector<Way> sums = {{seconds, 0}};
    for (const auto* ways : parts) {
      std::vector<Way> next;
      for (const Way& a : sums) {
        for (const Way& b : *ways) next.push_back({a.seconds + b.seconds, a.bytes + b.bytes});
      }
      sums = best_ways(std::move(next));
    }
    best.insert(best.end(), sums.begin(), sums.end());
    if (best.size() > 1000) best = best_ways(std::move(best));
  });
  return best_ways(std::move(best));
}

// --- The rules of each value ---------------------------------------------------------------------

// With several micro-batches, what the forward makes of parameters alone is the same in each, as
// long as only the update changes them: it is made once. Not views, and nothing that overwrites.
void BruteForce::find_once() {
  once_.assign(graph_.nodes().size(), false);
  if (graph_.micro_batches == 1) return;
  std::set<Value> lasting;
  std::set<Value> next;
  for (const Source& s : graph_.sources()) {
    if (s.final != s.value) next.insert(s.final);
    const NodeId writer = graph_.value(s.final).producer;
    const bool changed = s.final != s.value && graph_.node(writer).phase != Phase::kUpdate;
    if (s.kind == SourceKind::kParameter && !changed) lasting.insert(s.value);
  }
  for (size_t n = 0; n < once_.size(); ++n) {
    const Node& node = graph_.nodes()[n];
    bool once = node.phase == Phase::kForward && node.op->view == nullptr && !node.inputs.empty();
    for (Value v : node.inputs) once = once && lasting.contains(v);
    for (Value v : node.writes) once = once && v == kNoValue;
    for (Value v : node.outputs) once = once && !next.contains(v);
    if (!once) continue;
    once_[n] = true;
    lasting.insert(node.outputs.begin(), node.outputs.end());
  }
}

void BruteForce::describe(Value v, const Cluster& cluster, const Mesh& mesh) {
  ValueRules& r = values_[static_cast<size_t>(v)];
  const ValueInfo& info = graph_.value(v);
  std::vector<int64_t> sizes;
  std::vector<int8_t> dim;
  for (const ValueAtom& a : dims_.values[static_cast<size_t>(v)]) {
    sizes.push_back(a.size);
    dim.push_back(a.dim);
  }
  std::set<Reduction> partials = {Reduction::kSum};
  if (info.producer != kNoNode) {
    for (const Factor& f : graph_.node(info.producer).signature->factors()) {
      partials.insert(f.reduction);
    }
  }
  const std::vector<Reduction> kinds(partials.begin(), partials.end());
  const auto space = [&](bool bundled) {
    return std::make_unique<PlacementSpace>(cluster, mesh, sizes, dim, info.type.dtype, kinds,
                                            bundled);
  };
  r.plain = space(false);
  r.bundled = space(true);
  const Source* s = graph_.source_of(v);
  r.data = s != nullptr && s->kind == SourceKind::kData;
  r.source = s != nullptr && !r.data;
  for (const Output& o : graph_.outputs()) r.outputs += o.value == v;
  if (info.producer != kNoNode) {
    r.producer = families_.family_of(info.producer);
    r.once = once_[static_cast<size_t>(info.producer)];
    for (const MemberSplit& m : member(info.producer)) {
      r.made.push_back(
          static_cast<size_t>(r.plain->index_of(m.outputs[static_cast<size_t>(info.output)])));
    }
  }
  for (size_t n = 0; n < graph_.nodes().size(); ++n) {
    const std::vector<Value>& inputs = graph_.nodes()[n].inputs;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i] == v) add_reader(r, static_cast<NodeId>(n), i);
    }
  }
  // Gradients on their way to the update, and new parameters to where they are kept, are bundled.
  const bool computed = info.producer != kNoNode;
  const bool earlier = computed && graph_.node(info.producer).phase != Phase::kUpdate;
  const bool next =
      std::any_of(graph_.sources().begin(), graph_.sources().end(),
                  [&](const Source& source) { return source.final == v && source.value != v; });
  r.bundle[2] = !r.data && (earlier || (next && !computed));
}

const std::vector<MemberSplit>& BruteForce::member(NodeId n) const {
  return families_.kind_of(n).members[static_cast<size_t>(families_.member_of(n))];
}

void BruteForce::add_reader(ValueRules& r, NodeId n, size_t operand) {
  const int family = families_.family_of(n);
  const bool once = once_[static_cast<size_t>(n)];
  auto& list = r.readers[once ? 3 : static_cast<size_t>(graph_.node(n).phase)];
  auto at = std::find_if(list.begin(), list.end(),
                         [&](const Reader& reader) { return reader.family == family; });
  if (at == list.end()) at = list.insert(list.end(), {family, {}});
  at->needs.resize(member(n).size());
  for (size_t c = 0; c < member(n).size(); ++c) {
    const size_t need = static_cast<size_t>(r.plain->index_of(member(n)[c].inputs[operand]));
    auto& needs = at->needs[c];
    if (std::find(needs.begin(), needs.end(), need) == needs.end()) needs.push_back(need);
  }
}

// Held: whole, as it is made or as it is read; sources never partial, what a node makes partial
// only where a reader takes it so.
void BruteForce::find_held(Value v) {
  ValueRules& r = values_[static_cast<size_t>(v)];
  const size_t whole = static_cast<size_t>(r.plain->replicated());
  size_t groups = static_cast<size_t>(r.outputs) + (r.next_of != kNoValue);
  std::set<size_t> held = {whole};
  for (size_t p = 0; p < 4; ++p) {
    std::set<size_t> handed = {whole};
    for (const Reader& reader : r.readers[p]) {
      for (const auto& needs : reader.needs) handed.insert(needs.begin(), needs.end());
    }
    groups += r.readers[p].size();
    held.insert(handed.begin(), handed.end());
    for (size_t q = 0; q < r.plain->size() && rules_.anywhere; ++q) handed.insert(q);
    if (r.readers[p].size() > 1) r.handed[p].assign(handed.begin(), handed.end());
  }
  if (r.data || (groups < (r.once ? 1 : 2) && !r.source)) return;
  for (size_t p : r.made) {
    if (!r.plain->has_partial(p)) held.insert(p);
  }
  if (r.next_of != kNoValue) {
    for (size_t p : source_forms(r.next_of)) held.insert(p);
  }
  if (r.source) {
    const std::vector<size_t> forms = source_forms(v);
    held = {forms.begin(), forms.end()};
    if (groups == 1 && lies_with_its_family(v)) r.lies_with = r.readers[2][0].family;
  }
  for (size_t q = 0; q < r.plain->size() && rules_.anywhere; ++q) {
    if (!r.source || !r.plain->has_partial(q)) held.insert(q);
  }
  r.held.assign(held.begin(), held.end());
}

// Whether one family alone reads a state and makes its next value, in the same placement.
bool BruteForce::lies_with_its_family(Value state) const {
  const ValueRules& r = values_[static_cast<size_t>(state)];
  const Value final = graph_.source_of(state)->final;
  const ValueRules& next = values_[static_cast<size_t>(final)];
  for (const auto& phase : next.readers) {
    if (!phase.empty()) return false;
  }
  if (final == state || r.readers[2].size() != 1) return false;
  const Reader& reader = r.readers[2][0];
  if (reader.family != next.producer) return false;
  for (size_t c = 0; c < next.made.size(); ++c) {
    if (reader.needs[c] != std::vector{next.made[c]}) return false;
    if (r.plain->has_partial(next.made[c])) return false;
  }
  return true;
}

std::vector<size_t> BruteForce::source_forms(Value source) const {
  const ValueRules& r = values_[static_cast<size_t>(source)];
  std::set<size_t> forms = {static_cast<size_t>(r.plain->replicated())};
  for (const auto& phase : r.readers) {
    for (const Reader& reader : phase) {
      for (const auto& needs : reader.needs) forms.insert(needs.begin(), needs.end());
    }
  }
  const ValueRules& next = values_[static_cast<size_t>(graph_.source_of(source)->final)];
  forms.insert(next.made.begin(), next.made.end());
  std::erase_if(forms, [&](size_t p) { return r.plain->has_partial(p); });
  return {forms.begin(), forms.end()};
}

void BruteForce::group_values() {
  for (size_t v = 0; v < values_.size(); ++v) {
    if (values_[v].next_of != kNoValue) continue;
    Group g;
    g.values = {static_cast<Value>(v)};
    const Source* s = graph_.source_of(static_cast<Value>(v));
    if (s != nullptr && s->final != s->value) g.values.push_back(s->final);
    std::set<int> touched;
    for (Value w : g.values) {
      const ValueRules& r = values_[static_cast<size_t>(w)];
      if (r.producer >= 0) touched.insert(r.producer);
      for (const auto& phase : r.readers) {
        for (const Reader& reader : phase) touched.insert(reader.family);
      }
    }
    g.families.assign(touched.begin(), touched.end());
    groups_.push_back(std::move(g));
  }
}

// --- Counting ------------------------------------------------------------------------------------

void BruteForce::enumerate(const VisitPlan& visit) {
  for (Group& g : groups_) {
    size_t entries = 1;
    for (int f : g.families) entries *= allowed_[static_cast<size_t>(f)].size();
    g.memory.assign(entries, {});
  }
  choice_.assign(allowed_.size(), 0);
  Parts parts(groups_.size());
  std::vector<size_t> pick(allowed_.size(), 0);
  while (true) {
    double seconds = 0;
    for (size_t f = 0; f < pick.size(); ++f) {
      choice_[f] = allowed_[f][pick[f]];
      seconds += family_seconds(f, chosen(static_cast<int>(f)));
    }
    for (size_t g = 0; g < groups_.size(); ++g) {
      size_t at = 0;
      for (int f : groups_[g].families) {
        at = at * allowed_[static_cast<size_t>(f)].size() + pick[static_cast<size_t>(f)];
      }
      std::vector<Way>& ways = groups_[g].memory[at];
      if (ways.empty()) ways = ways_of(groups_[g]);
      parts[g] = &ways;
    }
    visit(parts, seconds);
    size_t f = pick.size();
    while (f > 0 && ++pick[f - 1] == allowed_[f - 1].size()) pick[--f] = 0;
    if (f == 0) break;
  }
}

// Whether a family's choices make or need any value of the group in different placements.
bool BruteForce::matters(int family, const Group& g) const {
  const auto differ = [](const auto& list) {
    return std::any_of(list.begin(), list.end(), [&](const auto& x) { return x != list[0]; });
  };
  for (Value v : g.values) {
    const ValueRules& r = values_[static_cast<size_t>(v)];
    if (r.producer == family && differ(r.made)) return true;
    for (const auto& phase : r.readers) {
      for (const Reader& reader : phase) {
        if (reader.family == family && differ(reader.needs)) return true;
      }
    }
  }
  return false;
}

MinSumProblem BruteForce::tables() {
  MinSumProblem problem;
  for (const Family& f : families_.all()) {
    const FamilyKind& kind = families_.kind(f.kind);
    auto table = std::make_shared<CostTable>();
    table->sizes = {static_cast<int32_t>(kind.choices.size())};
    for (size_t c = 0; c < kind.choices.size(); ++c) {
      table->cost.push_back(family_seconds(problem.domain_sizes.size(), c));
    }
    problem.terms.push_back({{static_cast<int32_t>(problem.domain_sizes.size())}, table});
    problem.domain_sizes.push_back(table->sizes[0]);
  }
  for (const Group& g : groups_) {
    choice_.assign(allowed_.size(), 0);
    CostTerm term;
    auto table = std::make_shared<CostTable>();
    for (int f : g.families) {
      if (!matters(f, g)) continue;
      term.variables.push_back(f);
      table->sizes.push_back(problem.domain_sizes[static_cast<size_t>(f)]);
    }
    while (true) {
      table->cost.push_back(ways_of(g).back().seconds);
      size_t i = term.variables.size();
      while (i > 0) {
        int& choice = choice_[static_cast<size_t>(term.variables[i - 1])];
        if (++choice < table->sizes[i - 1]) break;
        choice = 0;
        --i;
      }
      if (i == 0) break;
    }
    term.table = std::move(table);
    problem.terms.push_back(std::move(term));
  }
  return problem;
}

std::vector<Way> BruteForce::ways_of(const Group& g) const {
  std::map<size_t, std::vector<Way>> first;  // by held form
  ways_of_value(g.values[0], 0, [&](size_t held, const Way& way) { first[held].push_back(way); });
  std::vector<Way> result;
  for (auto& [held, ways] : first) {
    for (const Way& a : best_ways(std::move(ways))) {
      if (g.values.size() == 1) {
        result.push_back(a);
        continue;
      }
      ways_of_value(g.values[1], held, [&](size_t, const Way& b) {
        result.push_back({a.seconds + b.seconds, a.bytes + b.bytes});
      });
    }
  }
  return best_ways(std::move(result));
}

double BruteForce::times(size_t readers) const {
  return readers >= 2 ? 1 : static_cast<double>(graph_.micro_batches);
}

double BruteForce::times_of(NodeId n) const {
  return once_[static_cast<size_t>(n)] ? 1 : times(static_cast<size_t>(graph_.node(n).phase));
}

double BruteForce::family_seconds(size_t family, size_t choice) const {
  double seconds = 0;
  for (NodeId n : families_.all()[family].members) {
    seconds += times_of(n) * member(n)[choice].seconds;
  }
  return seconds;
}

// From one form to what the readers of a phase need, through form `out` when there is a hand-out.
double BruteForce::deliver(const ValueRules& r, size_t phase, size_t from, size_t out) const {
  const PlacementSpace& space = r.bundle[phase] ? *r.bundled : *r.plain;
  double seconds = 0;
  if (!r.handed[phase].empty()) {
    seconds += space.seconds(from, out);
    from = out;
  }
  std::vector<size_t> gone;
  for (const Reader& reader : r.readers[phase]) {
    for (size_t need : reader.needs[chosen(reader.family)]) {
      if (rules_.shared) {
        if (std::find(gone.begin(), gone.end(), need) != gone.end()) continue;
        gone.push_back(need);
      }
      seconds += space.seconds(from, need);
    }
  }
  return times(phase) * seconds;
}

// Calls visit for every combination of held form and hand-outs. `source_held`: where the source
// lies whose next value this is.
void BruteForce::ways_of_value(Value v, size_t source_held, const VisitWay& visit) const {
  const ValueRules& r = values_[static_cast<size_t>(v)];
  const size_t whole = static_cast<size_t>(r.plain->replicated());
  const size_t made = r.producer >= 0 ? r.made[chosen(r.producer)] : whole;
  const auto hand_outs = [&](size_t phase) {
    return r.handed[phase].empty() ? std::vector<size_t>{0} : r.handed[phase];
  };
  std::vector<size_t> held_forms = r.held.empty() ? std::vector{made} : r.held;
  if (r.lies_with >= 0) held_forms = r.readers[2][0].needs[chosen(r.lies_with)];
  for (size_t held : held_forms) {
    Way base;
    const NodeId producer = graph_.value(v).producer;
    if (producer != kNoNode) {
      base.seconds += times_of(producer) * r.plain->seconds(made, held);
    }
    // What only other nodes that are run when the step begins read is gone when it has begun.
    const bool lasts = r.once && (!r.readers[0].empty() || !r.readers[1].empty() ||
                                  !r.readers[2].empty() || r.outputs > 0);
    if (r.source || lasts) base.bytes += r.plain->local_bytes(held);
    base.seconds += r.outputs * r.plain->seconds(held, whole);
    if (r.next_of != kNoValue) base.seconds += r.bundled->seconds(held, source_held);
    for (size_t p : {2, 3}) {
      double least = kInfinity;
      for (size_t out : hand_outs(p)) least = std::min(least, deliver(r, p, held, out));
      base.seconds += least;
    }
    for (size_t forward : hand_outs(0)) {
      Way way = base;
      way.seconds += deliver(r, 0, held, forward);
      if (r.readers[1].empty()) {
        visit(held, way);
        continue;
      }
      const std::optional<size_t> kept = kept_form(r, forward);
      for (size_t out : hand_outs(1)) {
        Way again = way;
        again.seconds += deliver(r, 1, held, out);
        if (r.saved) again.bytes += r.plain->local_bytes(held);
        visit(held, again);
        if (!kept) continue;
        Way keep = way;
        keep.seconds += deliver(r, 1, *kept, out);
        if (r.saved || ((r.source || r.once) && *kept != held))
          keep.bytes += r.plain->local_bytes(*kept);
        visit(held, keep);
      }
    }
  }
}

// What the forward handed out, if that was one form.
std::optional<size_t> BruteForce::kept_form(const ValueRules& r, size_t handed) const {
  if (r.readers[0].empty() || (!r.crosses && !r.source)) return std::nullopt;
  if (!r.handed[0].empty()) return handed;
  const Reader& reader = r.readers[0][0];
  const auto& needs = reader.needs[chosen(reader.family)];
  if (needs.size() != 1) return std::nullopt;
  return needs[0];
}

}  // namespace cleave::testing
