#include "planner/placement_problem.h"

#include <algorithm>
#include <limits>
#include <set>

#include "graph/error.h"
#include "planner/offload.h"

namespace cleave {
namespace {

template <class... Parts>
std::string key_of(const char* what, const Parts&... parts) {
  std::string key = what;
  (key.append(reinterpret_cast<const char*>(&parts), sizeof parts), ...);
  return key;
}

}  // namespace

PlacementProblem::PlacementProblem(const Graph& graph, const Dimensions& dimensions,
                                   const Families& families, const Cluster& cluster,
                                   const Mesh& mesh, const Grouping& grouping,
                                   const Costing& costing, const Preferences& preferences)
    : graph_(graph),
      dims_(dimensions),
      families_(families),
      cluster_(cluster),
      mesh_(mesh),
      grouping_(grouping),
      once_(made_once(graph)),
      costing_(costing),
      ways_(graph.values().size()),
      uses_(graph.values().size()),
      unpriced_(static_cast<size_t>(graph.num_storages()), -1) {
  for (const Source& s : graph.sources()) {
    on_host_.push_back(preferences.on_host && preferences.on_host(s) && can_be_offloaded(graph, s));
  }
  collect_uses();
  find_groups();
  join_finals();
  add_families(preferences);
  // Sources first, and their held forms before any way: a next value's way, and the next value may
  // be a source itself, ends in its source's held form.
  for (size_t v = 0; v < ways_.size(); ++v) add_readers(static_cast<Value>(v));
  for (const Source& s : graph.sources()) add_held(s.value, preferences);
  for (const Source& s : graph.sources()) add_ways(s.value);
  for (size_t v = 0; v < ways_.size(); ++v) {
    if (graph.values()[v].source >= 0) continue;
    add_held(static_cast<Value>(v), preferences);
    add_ways(static_cast<Value>(v));
  }
}

void PlacementProblem::collect_uses() {
  for (size_t n = 0; n < graph_.nodes().size(); ++n) {
    const Node& node = graph_.nodes()[n];
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      uses_[static_cast<size_t>(node.inputs[i])].push_back(
          {static_cast<NodeId>(n), static_cast<int32_t>(i)});
    }
  }
  for (size_t s = 0; s < graph_.sources().size(); ++s) {
    const Source& source = graph_.sources()[s];
    if (source.final != source.value) {
      ways_[static_cast<size_t>(source.final)].final_of.push_back(static_cast<int32_t>(s));
    }
  }
  // A storage is as large as the value that made it. Sources are held whatever reads them.
  for (const ValueInfo& info : graph_.values()) {
    int64_t& elements = unpriced_[static_cast<size_t>(info.storage)];
    if (elements < 0) elements = info.source >= 0 ? 0 : numel(info.type.shape);
  }
}

void PlacementProblem::find_groups() {
  const size_t values = graph_.values().size();
  group_of_value_.assign(values, 0);
  piece_of_value_.assign(values, 0);
  for (size_t v = 0; v < values; ++v) {
    const NodeId producer = graph_.values()[v].producer;
    const NodeId node = producer != kNoNode ? producer : uses_[v].empty() ? 0 : uses_[v][0].node;
    if (graph_.nodes().empty()) continue;
    group_of_value_[v] = group(node);
    if (!grouping_.pieces.empty()) {
      piece_of_value_[v] = grouping_.pieces[static_cast<size_t>(node)];
    }
  }
  if (!grouping_.of_value.empty()) {
    group_of_value_.assign(grouping_.of_value.begin(), grouping_.of_value.end());
  }
}

// A state and its next value can take the same placements; so can all that share a next value.
void PlacementProblem::join_finals() {
  one_as_next_.resize(ways_.size());
  for (size_t v = 0; v < ways_.size(); ++v) one_as_next_[v] = {static_cast<Value>(v)};
  for (const Source& s : graph_.sources()) {
    const std::vector<Value> from = one_as_next_[static_cast<size_t>(s.final)];
    std::vector<Value> all = one_as_next_[static_cast<size_t>(s.value)];
    if (std::find(all.begin(), all.end(), s.final) != all.end()) continue;
    all.insert(all.end(), from.begin(), from.end());
    for (Value v : all) one_as_next_[static_cast<size_t>(v)] = all;
  }
}

int32_t PlacementProblem::add_variable(size_t domain) {
  problem_.domain_sizes.push_back(static_cast<int32_t>(domain));
  return static_cast<int32_t>(problem_.domain_sizes.size() - 1);
}

double PlacementProblem::family_seconds(const Family& family, size_t choice) const {
  const FamilyKind& kind = families_.kind(family.kind);
  double seconds = 0;
  for (size_t m = 0; m < family.members.size(); ++m) {
    seconds += kind.members[m][choice].seconds * runs_of(family.members[m]);
  }
  return seconds;
}

void PlacementProblem::add_families(const Preferences& preferences) {
  for (const Family& family : families_.all()) {
    const FamilyKind& kind = families_.kind(family.kind);
    const NodeId leader = family.members[0];
    const NodeId twin =
        grouping_.twins.empty() ? kNoNode : grouping_.twins[static_cast<size_t>(leader)];
    const int32_t like = twin == kNoNode ? -1 : families_.family_of(twin);
    const bool shared = like >= 0 && families_.all()[static_cast<size_t>(like)].kind == family.kind;
    const int32_t variable =
        shared ? variable_of_[static_cast<size_t>(like)] : add_variable(kind.choices.size());
    variable_of_.push_back(variable);
    if (preferences.choice) {
      auto table = std::make_shared<CostTable>();
      table->sizes = {static_cast<int32_t>(kind.choices.size())};
      for (size_t c = 0; c < kind.choices.size(); ++c) {
        table->cost.push_back(family_seconds(family, c) +
                              preferences.choice(family.members[0], kind.choices[c]));
      }
      problem_.terms.push_back({{variable}, table});
    } else {
      std::string key = key_of("family", family.kind);
      for (NodeId n : family.members) key += key_of("", runs_of(n));
      add_term({variable},
               memoised(key, {static_cast<int32_t>(kind.choices.size())},
                        [&](const int32_t* c) { return family_seconds(family, size_t(c[0])); }));
    }
  }
}

// Tables are made once for equal keys; equal layers then share them by address.
std::shared_ptr<const CostTable> PlacementProblem::table_for(
    const std::string& key, std::vector<int32_t> sizes,
    const std::function<void(std::vector<double>&)>& fill) {
  auto& entry = tables_[key];
  if (entry) return entry;
  auto table = std::make_shared<CostTable>();
  fill(table->cost);
  table->sizes = std::move(sizes);
  entry = std::move(table);
  return entry;
}

std::shared_ptr<const CostTable> PlacementProblem::memoised(
    const std::string& key, std::vector<int32_t> sizes,
    const std::function<double(const int32_t*)>& cost) {
  return table_for(key, sizes, [&](std::vector<double>& entries) {
    std::vector<int32_t> index(sizes.size(), 0);
    while (true) {
      entries.push_back(cost(index.data()));
      size_t i = sizes.size();
      while (i > 0 && ++index[i - 1] == sizes[i - 1]) index[--i] = 0;
      if (i == 0) break;
    }
  });
}

// A variable of -1 stands for a constant: its (only) choice is dropped from the table's variables.
// Two ends of one variable are brought together on the diagonal.
void PlacementProblem::add_term(std::vector<int32_t> variables,
                                std::shared_ptr<const CostTable> table) {
  std::vector<int32_t> distinct;
  for (int32_t v : variables) {
    if (v >= 0 && std::find(distinct.begin(), distinct.end(), v) == distinct.end()) {
      distinct.push_back(v);
    }
  }
  if (distinct.size() == variables.size()) {
    problem_.terms.push_back({std::move(variables), std::move(table)});
    return;
  }
  std::string key = key_of("diagonal", table);
  std::vector<int32_t> sizes;
  for (int32_t v : variables) {
    const auto at = std::find(distinct.begin(), distinct.end(), v);
    key += static_cast<char>(v < 0 ? 'x' : 'a' + (at - distinct.begin()));
  }
  for (int32_t v : distinct) sizes.push_back(problem_.domain_sizes[static_cast<size_t>(v)]);
  auto reduced = memoised(key, sizes, [&](const int32_t* c) {
    size_t index = 0;
    for (size_t i = 0; i < variables.size(); ++i) {
      int32_t at = 0;
      for (size_t d = 0; d < distinct.size(); ++d) {
        if (distinct[d] == variables[i]) at = c[d];
      }
      index = index * static_cast<size_t>(table->sizes[i]) + static_cast<size_t>(at);
    }
    return table->cost[index];
  });
  problem_.terms.push_back({std::move(distinct), std::move(reduced)});
}

const std::vector<uint32_t>& PlacementProblem::operand_splits(NodeId node, int32_t operand,
                                                              bool output) {
  const int32_t kind = families_.all()[static_cast<size_t>(families_.family_of(node))].kind;
  const int32_t member = families_.member_of(node);
  const auto [at, added] = operand_splits_.try_emplace({kind, member, operand, output});
  if (!added) return at->second;
  at->second.assign(mesh_.axes.size(), 0);
  for (const MemberSplit& m : families_.kind(kind).members[static_cast<size_t>(member)]) {
    const Placements& p = (output ? m.outputs : m.inputs)[static_cast<size_t>(operand)];
    for (size_t a = 0; a < p.size(); ++a) {
      if (p[a].is_shard()) at->second[a] |= uint32_t{1} << p[a].atom;
    }
  }
  return at->second;
}

std::vector<uint32_t> PlacementProblem::splits_of(Value v) {
  std::vector<uint32_t> splits(mesh_.axes.size(), 0);
  const auto join = [&](const std::vector<uint32_t>& more) {
    for (size_t a = 0; a < splits.size(); ++a) splits[a] |= more[a];
  };
  for (Value other : one_as_next_[static_cast<size_t>(v)]) {
    const ValueInfo& info = graph_.value(other);
    if (info.producer != kNoNode) join(operand_splits(info.producer, info.output, true));
    for (const Use& use : uses_[static_cast<size_t>(other)]) {
      join(operand_splits(use.node, use.operand, false));
    }
  }
  return splits;
}

int32_t PlacementProblem::space_for(Value v) {
  std::vector<Reduction> partials = {Reduction::kSum};
  const ValueInfo& info = graph_.value(v);
  for (Value other : one_as_next_[static_cast<size_t>(v)]) {
    const NodeId producer = graph_.value(other).producer;
    if (producer == kNoNode) continue;
    for (const Factor& f : graph_.node(producer).signature->factors()) {
      if (std::find(partials.begin(), partials.end(), f.reduction) == partials.end()) {
        partials.push_back(f.reduction);
      }
    }
  }
  std::string key = key_of("space", info.type.dtype);
  std::vector<int64_t> atoms;
  std::vector<int8_t> dims;
  for (const ValueAtom& a : dims_.values[static_cast<size_t>(v)]) {
    key += key_of("", a.size, a.dim);
    atoms.push_back(a.size);
    dims.push_back(a.dim);
  }
  for (Reduction r : partials) key += key_of("p", r);
  // On more than two axes only what the families can use: all together would be thousands.
  std::vector<uint32_t> splits;
  if (mesh_.axes.size() > 2) splits = splits_of(v);
  for (uint32_t s : splits) key += key_of("s", s);
  const auto [at, added] = space_named_.emplace(key, static_cast<int32_t>(spaces_.size()));
  if (added) {
    Space s;
    for (bool bundled : {false, true}) {
      (bundled ? s.bundled : s.plain) = std::make_unique<PlacementSpace>(
          cluster_, mesh_, atoms, dims, info.type.dtype, partials, bundled, splits);
    }
    spaces_.push_back(std::move(s));
  }
  return at->second;
}

const PlacementProblem::Indices* PlacementProblem::replicated_in(int32_t space_id) {
  auto& entry = indices_[{2, space_id}];
  if (!entry) entry = std::make_unique<Indices>(1, space(space_id, false).replicated());
  return entry.get();
}

const PlacementProblem::Indices* PlacementProblem::placements_of(int32_t kind, int32_t member,
                                                                 int32_t operand, bool output,
                                                                 int32_t space_id) {
  auto& entry = indices_[{0, kind, member, operand, output, space_id}];
  if (entry) return entry.get();
  entry = std::make_unique<Indices>();
  for (const MemberSplit& m : families_.kind(kind).members[static_cast<size_t>(member)]) {
    const Placements& p = (output ? m.outputs : m.inputs)[static_cast<size_t>(operand)];
    const int index = space(space_id, false).index_of(p);
    CLEAVE_ASSERT(index >= 0, "a family's placement does not divide");
    entry->push_back(index);
  }
  return entry.get();
}

PlacementProblem::End PlacementProblem::end_of(NodeId node, int32_t operand, bool output,
                                               int32_t space_id) {
  const int32_t family = families_.family_of(node);
  return {variable_of_[static_cast<size_t>(family)],
          {placements_of(families_.all()[static_cast<size_t>(family)].kind,
                         families_.member_of(node), operand, output, space_id)}};
}

double PlacementProblem::price_of(Value v, bool kept) const {
  const auto g = static_cast<size_t>(group_of_value_[static_cast<size_t>(v)]);
  const MemoryPrice& price = costing_.prices[g];
  const bool low = piece_of_value_[static_cast<size_t>(v)] < price.split;
  const double byte = low ? price.low : price.high;
  return kept ? byte * costing_.in_flight[g] : byte;
}

bool PlacementProblem::is_bundled(const ValueWays& w, Value v, size_t readers) const {
  if (w.data || readers != static_cast<size_t>(Phase::kUpdate)) return false;
  const NodeId producer = graph_.value(v).producer;
  return producer == kNoNode ? !w.final_of.empty() : graph_.node(producer).phase != Phase::kUpdate;
}

// The placements in which a shared value may be held: those in which it is made or read. Partial
// sums are held only for readers that take them.
const PlacementProblem::Indices* PlacementProblem::candidates(const ValueWays& w,
                                                              const std::vector<End>& ends) {
  std::set<int32_t> found;
  const PlacementSpace& s = space(w.space, false);
  for (const End& e : ends) {
    for (const Indices* list : e.needs) found.insert(list->begin(), list->end());
  }
  for (const Indices* list : w.producer.needs) {
    for (int32_t p : *list) {
      if (!s.has_partial(static_cast<size_t>(p))) found.insert(p);
    }
  }
  if (w.source)
    std::erase_if(found, [&](int32_t p) { return s.has_partial(static_cast<size_t>(p)); });
  found.insert(s.replicated());
  std::vector<int64_t> key = {1};
  key.insert(key.end(), found.begin(), found.end());
  auto& entry = indices_[key];
  if (!entry) entry = std::make_unique<Indices>(found.begin(), found.end());
  return entry.get();
}

PlacementProblem::End PlacementProblem::held_end(const ValueWays& w) const {
  if (w.held < 0) return w.producer;
  return {w.held, {w.held_forms}};
}

PlacementProblem::End PlacementProblem::handed_out(const Readers& r) const {
  if (r.hand_out >= 0) return {r.hand_out, {r.hand_out_forms}};
  return r.ends[0];
}

double PlacementProblem::conversion(int32_t space_id, bool bundled, int32_t from, const End& to,
                                    size_t choice) const {
  const PlacementSpace& s = space(space_id, bundled);
  double cost = 0;
  for (size_t i = 0; i < to.needs.size(); ++i) {
    const int32_t need = (*to.needs[i])[choice];
    bool repeated = false;  // one copy serves all operands that need the same
    for (size_t j = 0; j < i; ++j) repeated |= (*to.needs[j])[choice] == need;
    if (!repeated) cost += s.seconds(static_cast<size_t>(from), static_cast<size_t>(need));
  }
  return cost;
}

const std::vector<double>& PlacementProblem::conversions(int32_t space_id, bool bundled,
                                                         const Indices* from, const End& to) {
  std::string key = key_of("", space_id, bundled, from);
  for (const Indices* n : to.needs) key += key_of("", n);
  auto [at, added] = conversions_.try_emplace(std::move(key));
  std::vector<double>& matrix = at->second;
  if (!added) return matrix;
  const size_t columns = to.needs[0]->size();
  matrix.resize(from->size() * columns);
  std::map<int32_t, size_t> rows;  // by placement: choices share few
  for (size_t r = 0; r < from->size(); ++r) {
    double* row = matrix.data() + r * columns;
    const auto [known, first] = rows.emplace((*from)[r], r);
    if (!first) {
      std::copy_n(matrix.data() + known->second * columns, columns, row);
      continue;
    }
    for (size_t c = 0; c < columns; ++c) row[c] = conversion(space_id, bundled, (*from)[r], to, c);
  }
  return matrix;
}

Phase PlacementProblem::output_phase(Value v) const {
  const NodeId producer = graph_.value(v).producer;
  if (graph_.micro_batches > 1) return Phase::kUpdate;
  return producer == kNoNode ? Phase::kForward : graph_.node(producer).phase;
}

void PlacementProblem::add_conversion(Value v, const End& from, const End& to, Phase phase,
                                      bool bundled) {
  const ValueWays& w = ways_[static_cast<size_t>(v)];
  const double times = runs(v, phase);
  std::string key = key_of("convert", w.space, bundled, from.needs[0], times);
  for (const Indices* n : to.needs) key += key_of("", n);
  const auto size = [](const End& e) { return static_cast<int32_t>(e.needs[0]->size()); };
  auto table = table_for(key, {size(from), size(to)}, [&](std::vector<double>& cost) {
    cost = conversions(w.space, bundled, from.needs[0], to);
    for (double& c : cost) c *= times;
  });
  add_term({from.variable, to.variable}, std::move(table));
}

void PlacementProblem::add_readers(Value v) {
  ValueWays& w = ways_[static_cast<size_t>(v)];
  const ValueInfo& info = graph_.value(v);
  const Source* source = graph_.source_of(v);
  w.space = space_for(v);
  w.data = source != nullptr && source->kind == SourceKind::kData;
  w.source = source != nullptr && !w.data;
  for (int32_t s : w.final_of) {
    w.accumulated |= graph_.sources()[size_t(s)].kind == SourceKind::kAccumulator;
  }
  if (info.producer != kNoNode) {
    w.producer = end_of(info.producer, info.output, true, w.space);
    w.once = once_[static_cast<size_t>(info.producer)];
  }
  if (w.data) {
    w.held_forms = replicated_in(w.space);
    w.producer = {-1, {w.held_forms}};
  }
  for (const Use& use : uses_[static_cast<size_t>(v)]) {
    Readers& r = w.readers[readers_of(use.node)];
    const End end = end_of(use.node, use.operand, false, w.space);
    r.uses.push_back(use);
    auto known = std::find_if(r.ends.begin(), r.ends.end(),
                              [&](const End& e) { return e.variable == end.variable; });
    if (known == r.ends.end()) {
      r.ends.push_back(end);
    } else if (std::find(known->needs.begin(), known->needs.end(), end.needs[0]) ==
               known->needs.end()) {
      known->needs.push_back(end.needs[0]);
    }
  }
}

// Whether a state is read by one family alone, which makes its next value in the same placement:
// then it lies as that family needs it. Never as a partial result, unless it starts at zero: an
// accumulator always lies so.
bool PlacementProblem::lies_with_its_family(Value v) const {
  const ValueWays& w = ways_[static_cast<size_t>(v)];
  const Source* source = graph_.source_of(v);
  if (!w.source || source->final == v || !w.final_of.empty()) return false;
  if (source->kind == SourceKind::kAccumulator) return true;
  for (size_t p : {size_t{0}, size_t{1}, kBegin}) {
    if (!w.readers[p].ends.empty()) return false;
  }
  if (w.readers[2].ends.size() != 1) return false;
  if (std::any_of(graph_.outputs().begin(), graph_.outputs().end(),
                  [&](const Output& o) { return o.value == v; })) {
    return false;
  }
  const End& reader = w.readers[2].ends[0];
  const End& made = ways_[static_cast<size_t>(source->final)].producer;
  const PlacementSpace& s = space(w.space, false);
  return uses_[static_cast<size_t>(source->final)].empty() && made.variable == reader.variable &&
         reader.needs.size() == 1 && *made.needs[0] == *reader.needs[0] &&
         std::none_of(reader.needs[0]->begin(), reader.needs[0]->end(),
                      [&](int32_t p) { return s.has_partial(static_cast<size_t>(p)); });
}

PlacementProblem::End PlacementProblem::only_reader(Value v) const {
  const ValueWays& w = ways_[static_cast<size_t>(v)];
  std::vector<End> ends;
  for (const Readers& r : w.readers) ends.insert(ends.end(), r.ends.begin(), r.ends.end());
  const Source& source = *graph_.source_of(v);
  CLEAVE_ASSERT(ends.size() == 1 && ends[0].needs.size() == 1 &&
                    ways_[static_cast<size_t>(source.final)].producer.variable == ends[0].variable,
                "{} '{}' is not read by one op alone, which makes its next value",
                name_of(source.kind), source.name);
  return ends[0];
}

void PlacementProblem::add_held(Value v, const Preferences& preferences) {
  ValueWays& w = ways_[static_cast<size_t>(v)];
  if (lies_with_its_family(v)) {
    w.producer = only_reader(v);
    return;
  }
  if (w.accumulated) return;
  std::vector<End> ends;
  for (const Readers& r : w.readers) ends.insert(ends.end(), r.ends.begin(), r.ends.end());
  for (const Output& o : graph_.outputs()) {
    if (o.value == v) ends.push_back({-1, {replicated_in(w.space)}});
  }
  const size_t least = w.once ? 1 : 2;  // it may be brought once where every micro-batch reads it
  if (w.data || (!w.source && ends.size() + w.final_of.size() < least)) return;
  for (int32_t s : w.final_of) {
    if (!w.source) ends.push_back(held_end(ways_[size_t(graph_.sources()[size_t(s)].value)]));
  }
  for (Value other : one_as_next_[static_cast<size_t>(v)]) {
    if (!w.source || other == v) continue;
    const ValueWays& o = ways_[static_cast<size_t>(other)];
    CLEAVE_ASSERT(o.space == w.space, "%{} and its next value are taken apart differently", v);
    if (graph_.value(other).producer != kNoNode) ends.push_back(o.producer);
    if (!o.source) continue;
    for (const Readers& r : o.readers) ends.insert(ends.end(), r.ends.begin(), r.ends.end());
  }
  w.held_forms = candidates(w, ends);
  w.held = add_variable(w.held_forms->size());
  if (!preferences.held) return;
  auto table = std::make_shared<CostTable>();
  table->sizes = {static_cast<int32_t>(w.held_forms->size())};
  for (int32_t p : *w.held_forms) {
    table->cost.push_back(preferences.held(v, space(w.space, false).at(static_cast<size_t>(p))));
  }
  problem_.terms.push_back({{w.held}, table});
}

void PlacementProblem::add_ways(Value v) {
  ValueWays& w = ways_[static_cast<size_t>(v)];
  for (const Output& o : graph_.outputs()) {
    if (o.value == v) w.fixed.push_back({-1, {replicated_in(w.space)}});
  }
  for (int32_t s : w.final_of) {
    w.fixed.push_back(held_end(ways_[size_t(graph_.sources()[size_t(s)].value)]));
  }
  if (w.source && w.held < 0) {
    add_state_price(v, w);
    return;
  }
  if (uses_[static_cast<size_t>(v)].empty() && w.fixed.empty() && !w.source) return;
  const NodeId producer = graph_.value(v).producer;
  // Views of one storage are priced as long as they are no more than the whole.
  int64_t& unpriced = unpriced_[static_cast<size_t>(graph_.value(v).storage)];
  const int64_t elements = numel(graph_.type(v).shape);
  const bool crosses = producer != kNoNode && graph_.node(producer).phase == Phase::kForward &&
                       !w.readers[1].ends.empty();
  w.saved = crosses && !w.once && elements <= unpriced;
  if (w.saved || w.once) unpriced -= elements;

  for (Readers& r : w.readers) {
    if (r.ends.size() < 2) continue;
    ValueWays only_readers;
    only_readers.space = w.space;
    r.hand_out_forms = candidates(only_readers, r.ends);
    r.hand_out = add_variable(r.hand_out_forms->size());
  }
  const End held = held_end(w);
  if (w.held >= 0 && !w.source) {
    add_conversion(v, w.producer, held, phase_of(producer), false);
  }
  for (size_t p = 0; p < kBegin; ++p) w.lasts = w.lasts || (w.once && !w.readers[p].ends.empty());
  w.lasts = w.lasts || (w.once && !w.fixed.empty());
  if (w.source || w.lasts) add_state_price(v, w);
  for (size_t p = 0; p < std::size(w.readers); ++p) {
    const Readers& r = w.readers[p];
    if (r.ends.empty()) continue;
    const Phase phase = phase_of_readers(p);
    const bool bundled = is_bundled(w, v, p);
    const End out = handed_out(r);
    if (p == 1 && (crosses || w.source)) {
      add_backward_term(v, w);
    } else {
      add_conversion(v, held, out, phase, bundled);
    }
    if (r.hand_out < 0) continue;
    for (const End& e : r.ends) add_conversion(v, out, e, phase, bundled);
  }
  const size_t outputs = w.fixed.size() - w.final_of.size();
  for (size_t i = 0; i < w.fixed.size(); ++i) {
    const bool final = i >= outputs;
    add_conversion(v, held, w.fixed[i], final ? Phase::kUpdate : output_phase(v), final);
  }
}

bool PlacementProblem::lies_on_host(Value v) const {
  const int32_t source = graph_.value(v).source;
  return source >= 0 && on_host_[static_cast<size_t>(source)];
}

// The bytes of a parameter or state, or of what is made once a step; on the host, the seconds to
// move them.
void PlacementProblem::add_state_price(Value v, const ValueWays& w) {
  const bool on_host = lies_on_host(v);
  const double price =
      on_host ? costing_.runs[static_cast<size_t>(group_of_value_[static_cast<size_t>(v)])][2]
              : price_of(v, false);
  if (price <= 0) return;
  const End held = held_end(w);
  add_term({held.variable},
           memoised(key_of("state bytes", w.space, held.needs[0], price, on_host),
                    {static_cast<int32_t>(held.needs[0]->size())}, [&](const int32_t* c) {
                      const double bytes = space(w.space, false)
                                               .local_bytes(static_cast<size_t>(
                                                   (*held.needs[0])[static_cast<size_t>(c[0])]));
                      return price * (on_host ? offload_seconds(cluster_, bytes) : bytes);
                    }));
}

// What the backward hands out: made from the held form, which is then kept, or from what the
// forward handed out, which is kept instead. The cheaper of the two, bytes priced.
void PlacementProblem::add_backward_term(Value v, ValueWays& w) {
  const Readers &f = w.readers[0], &b = w.readers[1];
  const double price = price_of(v, true);
  const End held = held_end(w);
  const End out = handed_out(b);
  const bool from_forward = !f.ends.empty();
  const End forward = from_forward ? handed_out(f) : End{-1, {held.needs[0]}};
  if (grouping_.explicit_keeping && from_forward) w.keep = add_variable(2);
  std::string key = key_of("backward", w.space, w.saved, w.source || w.once, from_forward,
                           held.needs[0], price, runs(v, Phase::kBackward), w.keep >= 0);
  for (const Indices* n : forward.needs) key += key_of("", n);
  key += ';';
  for (const Indices* n : out.needs) key += key_of("", n);
  const auto size = [](const End& e) { return static_cast<int32_t>(e.needs[0]->size()); };
  const int32_t forward_size = from_forward ? size(forward) : 1;
  const PlacementSpace& s = space(w.space, false);
  const bool chosen = w.keep >= 0;
  const auto outs = static_cast<size_t>(size(out));
  const auto fill = [&](std::vector<double>& entries) {
    constexpr double kNever = std::numeric_limits<double>::infinity();
    const double times = runs(v, Phase::kBackward);
    const double* from_held = conversions(w.space, false, held.needs[0], out).data();
    const double* from_kept =
        from_forward ? conversions(w.space, false, forward.needs[0], out).data() : nullptr;
    const auto bytes = [&](int32_t placement) {
      return s.local_bytes(static_cast<size_t>(placement));
    };
    const size_t held_forms = held.needs[0]->size();
    entries.reserve(held_forms * static_cast<size_t>(forward_size) * outs * (chosen ? 2 : 1));
    for (size_t i = 0; i < held_forms; ++i) {
      const int32_t h = (*held.needs[0])[i];
      const double held_price = w.saved ? price * bytes(h) : 0;
      for (size_t j = 0; j < static_cast<size_t>(forward_size); ++j) {
        const int32_t kept = from_forward ? (*forward.needs[0])[j] : h;
        const bool same = kept == h;
        // A family that took two forms leaves none to keep.
        const bool one = from_forward && std::all_of(forward.needs.begin(), forward.needs.end(),
                                                     [&](auto* n) { return (*n)[j] == kept; });
        const bool can = one && !(chosen && same);
        const double kept_price =
            w.saved || ((w.source || w.once) && !same) ? price * bytes(kept) : 0;
        for (size_t o = 0; o < outs; ++o) {
          const double cost = times * from_held[i * outs + o] + held_price;
          const double instead = can ? times * from_kept[j * outs + o] + kept_price : kNever;
          entries.push_back(chosen ? cost : std::min(cost, instead));
          if (chosen) entries.push_back(instead);
        }
      }
    }
  };
  std::vector<int32_t> sizes = {size(held), forward_size, size(out)};
  std::vector<int32_t> variables = {held.variable, from_forward ? forward.variable : -1,
                                    out.variable};
  if (chosen) sizes.push_back(2), variables.push_back(w.keep);
  add_term(std::move(variables), table_for(key, std::move(sizes), fill));
}

}  // namespace cleave
