#include "planner/cut.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "graph/error.h"
#include "graph/transfer.h"

namespace cleave {
namespace {

bool is_source_kept(const Source& s) { return s.kind != SourceKind::kData; }

// By storage: the source that begins it; -1: none.
std::vector<int32_t> sources_of_storages(const Graph& graph) {
  std::vector<int32_t> result(static_cast<size_t>(graph.num_storages()), -1);
  for (size_t s = 0; s < graph.sources().size(); ++s) {
    const Value v = graph.sources()[s].value;
    result[static_cast<size_t>(graph.value(v).storage)] = static_cast<int32_t>(s);
  }
  return result;
}

// The nodes that read each value, ascending.
std::vector<std::vector<NodeId>> readers_of_values(const Graph& graph) {
  std::vector<std::vector<NodeId>> readers(graph.values().size());
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    for (Value v : graph.nodes()[n].inputs) {
      auto& list = readers[static_cast<size_t>(v)];
      if (list.empty() || list.back() != static_cast<NodeId>(n))
        list.push_back(static_cast<NodeId>(n));
    }
  }
  return readers;
}

// Chunks for all nodes and kept sources of a graph.
class Assignment {
 public:
  Assignment(const Graph& graph, const std::vector<NodeId>& cuts)
      : graph_(graph),
        source_of_storage_(sources_of_storages(graph)),
        readers_(readers_of_values(graph)),
        node(graph.nodes().size(), -1),
        source(graph.sources().size(), -1) {
    place_forward(cuts);
    place_parameters();
    spread();
    place_accumulators();
    spread();
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      if (node[n] >= 0) continue;
      node[n] = natural_chunk(static_cast<NodeId>(n));
      spread();
    }
    for (size_t s = 0; s < source.size(); ++s) {
      if (is_source_kept(graph.sources()[s]) && source[s] < 0) source[s] = 0;  // nothing uses it
    }
  }

 private:
  int32_t& at(NodeId n) { return node[static_cast<size_t>(n)]; }

  void place_forward(const std::vector<NodeId>& cuts) {
    CLEAVE_ASSERT(std::is_sorted(cuts.begin(), cuts.end()), "cuts are not in order");
    for (NodeId c : cuts) {
      CLEAVE_ASSERT(
          c > 0 && static_cast<size_t>(c) < node.size() && graph_.node(c).phase == Phase::kForward,
          "a cut before node {}, which is not of the forward", c);
    }
    for (size_t n = 0; n < node.size(); ++n) {
      if (graph_.nodes()[n].phase != Phase::kForward) continue;
      node[n] = static_cast<int32_t>(
          std::upper_bound(cuts.begin(), cuts.end(), static_cast<NodeId>(n)) - cuts.begin());
    }
  }

  void place_parameters() {
    for (size_t s = 0; s < source.size(); ++s) {
      const Source& source_s = graph_.sources()[s];
      if (source_s.kind != SourceKind::kParameter) continue;
      for (NodeId reader : readers_[static_cast<size_t>(source_s.value)]) {
        if (at(reader) >= 0) {
          source[s] = at(reader);
          break;
        }
      }
    }
  }

  // Where the update reads them.
  void place_accumulators() {
    for (const Source& s : graph_.sources()) {
      if (s.kind != SourceKind::kAccumulator || s.final == s.value) continue;
      const NodeId n = graph_.value(s.final).producer;
      if (at(n) < 0) at(n) = chunk_of_readers(n);
    }
  }

  // Followers share their leader's chunk, and what overwrites a source the source's: until nothing
  // changes.
  void spread() {
    const auto share = [&](int32_t& a, int32_t& b) {
      if ((a < 0) == (b < 0)) return false;
      (a < 0 ? a : b) = std::max(a, b);
      return true;
    };
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t n = 0; n < node.size(); ++n) {
        const Node& x = graph_.nodes()[n];
        if (x.follows != kNoNode) changed |= share(node[n], at(x.follows));
        for (Value target : x.writes) {
          if (target == kNoValue) continue;
          const int32_t s = source_of_storage_[static_cast<size_t>(graph_.value(target).storage)];
          if (s >= 0 && is_source_kept(graph_.sources()[static_cast<size_t>(s)]))
            changed |= share(node[n], source[static_cast<size_t>(s)]);
        }
      }
    }
  }

  int32_t chunk_of_value(Value v) const {
    const ValueInfo& info = graph_.value(v);
    return info.producer == kNoNode ? source[static_cast<size_t>(info.source)]
                                    : node[static_cast<size_t>(info.producer)];
  }

  int32_t chunk_of_readers(NodeId n) const {
    for (Value v : graph_.node(n).outputs) {
      for (NodeId r : readers_[static_cast<size_t>(v)]) {
        if (node[static_cast<size_t>(r)] >= 0) return node[static_cast<size_t>(r)];
      }
    }
    return -1;
  }

  // Of a node that nothing else has placed: where its readers are, when it adds things up or reads
  // nothing; else where its largest operand is.
  int32_t natural_chunk(NodeId n) const {
    const Node& x = graph_.node(n);
    std::set<int32_t> chunks;
    int32_t largest = -1;
    int64_t most = -1;
    for (Value v : x.inputs) {
      const int32_t chunk = chunk_of_value(v);
      if (chunk < 0) continue;
      chunks.insert(chunk);
      const int64_t bytes = numel(graph_.type(v).shape) * size_of(graph_.type(v).dtype);
      if (bytes > most) most = bytes, largest = chunk;
    }
    if (chunks.size() == 1) return largest;
    const bool free = chunks.empty() || x.op->sums;
    const int32_t read = free ? chunk_of_readers(n) : -1;
    return read >= 0 ? read : std::max(largest, 0);
  }

  const Graph& graph_;
  const std::vector<int32_t> source_of_storage_;
  const std::vector<std::vector<NodeId>> readers_;

 public:
  std::vector<int32_t> node, source;
};

// The new graph, made node by node.
class Cutting {
 public:
  Cutting(const Graph& graph, const std::vector<NodeId>& cuts)
      : graph_(graph),
        chunks_(graph, cuts),
        readers_(readers_of_values(graph)),
        moved_(graph.values().size(), kNoValue),
        moved_node_(graph.nodes().size(), kNoNode),
        done_(graph.nodes().size(), false) {}

  RewrittenGraph run() {
    add_sources();
    for (size_t s = 0; s < graph_.sources().size(); ++s) count_in_forward(graph_.sources()[s]);
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const auto id = static_cast<NodeId>(n);
      if (graph_.node(id).phase == Phase::kUpdate) begin_update();
      if (!done_[n]) add_node(id);
    }
    begin_update();
    finish();
    return std::move(result_);
  }

 private:
  Graph& to() { return result_.graph; }

  void add_sources() {
    to().name = graph_.name;
    to().micro_batches = graph_.micro_batches;
    for (const std::string& f : graph_.files()) to().intern_file(f);
    for (const std::string& s : graph_.scopes()) to().intern_scope(s);
    for (size_t s = 0; s < graph_.sources().size(); ++s) {
      const Source& source = graph_.sources()[s];
      const Value v = to().add_source(source, graph_.type(source.value));
      moved_[static_cast<size_t>(source.value)] = v;
      home_.push_back(chunks_.source[s]);
    }
  }

  // --- Building blocks ---------------------------------------------------------------------------

  // The chunk of a value of the new graph; -1: every one.
  int32_t home(Value v) const { return home_[static_cast<size_t>(v)]; }

  void stand_at(const Node& node) {
    to().cursor = {.phase = node.phase, .follows = kNoNode, .loc = node.loc, .scope = node.scope};
  }

  std::vector<Value> add(const OpDef& op, std::vector<Value> inputs, std::string_view factors,
                         const Attrs& attrs, std::vector<Value> writes, int32_t chunk,
                         NodeId origin) {
    const auto out = to().add(op, std::move(inputs), factors, attrs, std::move(writes));
    result_.chunk_of.push_back(chunk);
    result_.origin.push_back(origin);
    home_.resize(to().values().size(), chunk);
    return out;
  }

  // The value in this chunk, sent there now when it is not there yet. The cursor is kept.
  Value in_chunk(Value v, int32_t chunk, Phase reader, bool always = false) {
    if (home(v) < 0 || (home(v) == chunk && !always)) return v;
    const auto sent = sent_.find({v, chunk});
    if (sent != sent_.end()) return sent->second;
    const ValueInfo info = to().value(v);
    const Cursor before = to().cursor;
    const Phase made = info.producer == kNoNode ? Phase::kForward : to().node(info.producer).phase;
    const Phase phase = reader == Phase::kUpdate ? reader : made;
    CLEAVE_ASSERT(phase != Phase::kBackward || chunk < home(v),
                  "chunk {} would wait in its backward for chunk {}", chunk, home(v));
    to().cursor.phase = phase;
    to().cursor.follows = kNoNode;
    const Value out = add(transfer_op, {v}, {}, {}, {}, chunk, kNoNode)[0];
    to().cursor = before;
    return sent_[{v, chunk}] = out;
  }

  // The sum of values of any chunks in this one: of several from one other chunk, their sum is
  // sent. `sum`: the node whose op adds up.
  Value sum_in(const Node& sum, const std::vector<Value>& terms, int32_t chunk, Phase phase,
               NodeId origin) {
    std::map<int32_t, std::vector<Value>> by_chunk;
    for (Value v : terms) by_chunk[home(v) < 0 ? chunk : home(v)].push_back(v);
    std::vector<Value> here;
    for (auto& [from, values] : by_chunk) {
      if (from == chunk) {
        here.insert(here.begin(), values.begin(), values.end());
      } else {
        stand_at(sum);
        const Value part = add_up(sum, values, from, kNoNode);
        to().cursor.phase = phase;
        here.push_back(in_chunk(part, chunk, phase));
      }
    }
    stand_at(sum);
    to().cursor.phase = phase;
    return add_up(sum, here, chunk, origin);
  }

  Value add_up(const Node& sum, const std::vector<Value>& terms, int32_t chunk, NodeId origin) {
    if (terms.size() == 1) return terms[0];
    const std::string text = sum.signature->text();
    const std::string dims = text.substr(0, text.find(','));
    std::string factors = dims;
    for (size_t i = 1; i < terms.size(); ++i) factors += "," + dims;
    return add(*sum.op, terms, factors + "->" + dims, sum.attrs, {}, chunk, origin)[0];
  }

  std::vector<Value> moved(const std::vector<Value>& values) const {
    std::vector<Value> result;
    for (Value v : values) result.push_back(v < 0 ? v : moved_[static_cast<size_t>(v)]);
    return result;
  }

  int32_t chunk_of(NodeId n) const { return chunks_.node[static_cast<size_t>(n)]; }

  // Whether the terms of this sum lie in several chunks, or in another than the sum.
  bool is_mixed(const Node& node, int32_t chunk) const {
    if (!node.op->sums || !node.writes.empty()) return false;
    for (Value v : node.inputs) {
      const int32_t from = home(moved_[static_cast<size_t>(v)]);
      if (from >= 0 && from != chunk) return true;
    }
    return false;
  }

  // --- Nodes -------------------------------------------------------------------------------------

  void add_node(NodeId n) {
    const Node& node = graph_.node(n);
    const int32_t chunk = chunk_of(n);
    if (is_mixed(node, chunk)) {
      add_mixed_sum(n);
      return;
    }
    if (const Source* sum = accumulator_written_by(node)) {
      accumulate(n, *sum, node.inputs[1] == node.writes[0] ? node.inputs[0] : node.inputs[1]);
      return;
    }
    stand_at(node);
    std::vector<Value> inputs;
    for (Value v : node.inputs) inputs.push_back(operand(v, chunk, node.phase));
    if (node.follows != kNoNode)
      to().cursor.follows = moved_node_[static_cast<size_t>(node.follows)];
    std::vector<Value> writes;
    for (Value target : node.writes) writes.push_back(writable(target, chunk));
    if (std::all_of(writes.begin(), writes.end(), [](Value v) { return v == kNoValue; }))
      writes.clear();
    const auto out =
        add(*node.op, inputs, node.signature->text(), node.attrs, std::move(writes), chunk, n);
    for (size_t o = 0; o < out.size(); ++o) moved_[static_cast<size_t>(node.outputs[o])] = out[o];
    moved_node_[static_cast<size_t>(n)] = static_cast<NodeId>(to().nodes().size() - 1);
  }

  Value operand(Value v, int32_t chunk, Phase reader) {
    if (reader == Phase::kUpdate) {
      const auto total = totals_.find(v);
      if (total != totals_.end()) return in_chunk(total->second, chunk, reader);
    }
    const Value now = moved_[static_cast<size_t>(v)];
    // Before the state is counted up, a copy was sent to every reader.
    return in_chunk(now, chunk, reader, counted_.contains(v));
  }

  // What is overwritten in another chunk is a copy of the value, or nothing.
  Value writable(Value target, int32_t chunk) const {
    if (target == kNoValue) return target;
    const Value now = moved_[static_cast<size_t>(target)];
    if (home(now) == chunk) return newest(now) ? now : kNoValue;
    const auto sent = sent_.find({now, chunk});
    return sent == sent_.end() || !newest(sent->second) ? kNoValue : sent->second;
  }

  bool newest(Value v) const {
    const ValueInfo& info = result_.graph.value(v);
    return info.version == result_.graph.newest_version(info.storage);
  }

  bool only_update_reads(Value v) const {
    const auto& readers = readers_[static_cast<size_t>(v)];
    return !readers.empty() && std::all_of(readers.begin(), readers.end(), [&](NodeId r) {
      return graph_.node(r).phase == Phase::kUpdate;
    });
  }

  // Whether all that reads the value adds it to accumulators.
  bool only_accumulated(Value v) const {
    const auto& readers = readers_[static_cast<size_t>(v)];
    return !readers.empty() && std::all_of(readers.begin(), readers.end(), [&](NodeId r) {
      return accumulator_written_by(graph_.node(r)) != nullptr && graph_.node(r).writes[0] != v;
    });
  }

  void add_mixed_sum(NodeId n) {
    const Node& node = graph_.node(n);
    const Value out = node.outputs[0];
    const std::vector<Value> terms = moved(node.inputs);
    if (only_accumulated(out)) {
      parts_[out] = {n, terms};  // added up by accumulate()
    } else if (node.phase != Phase::kUpdate && only_update_reads(out)) {
      late_sums_.push_back(n);  // sent once a step
    } else {
      set_sum(n, sum_in(node, terms, chunk_of(n), node.phase, n));
    }
  }

  void set_sum(NodeId n, Value total) {
    moved_[static_cast<size_t>(graph_.node(n).outputs[0])] = total;
    moved_node_[static_cast<size_t>(n)] = to().value(total).producer;
  }

  // The accumulator that the node adds to; null when there is none.
  const Source* accumulator_written_by(const Node& node) const {
    if (node.phase == Phase::kUpdate || node.writes.size() != 1 || node.inputs.size() != 2 ||
        node.writes[0] == kNoValue) {
      return nullptr;
    }
    const Source* s = graph_.source_of(node.writes[0]);
    const bool is = s != nullptr && s->kind == SourceKind::kAccumulator;
    return is && s->final == node.outputs[0] ? s : nullptr;
  }

  // One accumulator for each chunk that contributes.
  void accumulate(NodeId n, const Source& sum, Value part) {
    const Node& node = graph_.node(n);
    std::map<int32_t, std::vector<Value>> by_chunk;
    const auto parts = parts_.find(part);
    const std::vector<Value> terms = parts == parts_.end() ? moved({part}) : parts->second.terms;
    for (Value v : terms) by_chunk[home(v) < 0 ? chunk_of(n) : home(v)].push_back(v);
    // The accumulator that was there serves the chunk that updates, if that one contributes.
    const auto own = by_chunk.contains(chunk_of(n)) ? by_chunk.find(chunk_of(n)) : by_chunk.begin();
    const Value accumulator = moved_[static_cast<size_t>(sum.value)];
    home_[static_cast<size_t>(accumulator)] = own->first;
    std::vector<Value> sums;
    for (const auto& [chunk, values] : by_chunk) {
      stand_at(node);
      Value into = accumulator;
      if (chunk != own->first) {
        Source another = sum;
        another.name = fmt::format("{}@{}", sum.name, chunk);
        into = to().add_source(std::move(another), graph_.type(sum.value));
        home_.push_back(chunk);
      }
      const Value term = values.size() == 1
                             ? values[0]
                             : add_up(graph_.node(parts->second.sum), values, chunk, kNoNode);
      std::vector<Value> inputs = {into, term};
      if (node.inputs[1] == node.writes[0]) std::swap(inputs[0], inputs[1]);
      const Value after = add(*node.op, inputs, node.signature->text(), node.attrs, {into}, chunk,
                              chunk == own->first ? n : kNoNode)[0];
      to().set_final(into, after);
      sums.push_back(after);
      if (chunk == own->first) {
        moved_[static_cast<size_t>(node.outputs[0])] = after;
        moved_node_[static_cast<size_t>(n)] = static_cast<NodeId>(to().nodes().size() - 1);
      }
    }
    if (sums.size() > 1) late_totals_.push_back({node.outputs[0], parts->second.sum, n, sums});
  }

  // What the update reads of other chunks' sums, before anything else of it.
  void begin_update() {
    if (updating_) return;
    updating_ = true;
    for (NodeId n : late_sums_) {
      const Node& node = graph_.node(n);
      set_sum(n, sum_in(node, moved(node.inputs), chunk_of(n), Phase::kUpdate, n));
    }
    for (const Total& t : late_totals_)
      totals_[t.of] = sum_in(graph_.node(t.sum), t.parts, chunk_of(t.node), Phase::kUpdate, t.sum);
  }

  // A state that only counts micro-batches: its readers get copies first, then it counts, all in
  // the forward.
  void count_in_forward(const Source& s) {
    if (s.kind != SourceKind::kState || s.final == s.value) return;
    const NodeId n = graph_.value(s.final).producer;
    const Node& node = graph_.node(n);
    if (node.phase == Phase::kUpdate ||
        std::any_of(node.inputs.begin(), node.inputs.end(), [&](Value v) { return v != s.value; }))
      return;
    std::set<int32_t> chunks;
    for (NodeId r : readers_[static_cast<size_t>(s.value)]) {
      if (r != n) chunks.insert(chunk_of(r));
    }
    if (chunks.empty()) return;
    const Value v = moved_[static_cast<size_t>(s.value)];
    home_[static_cast<size_t>(v)] = *chunks.begin();
    stand_at(node);
    to().cursor.phase = Phase::kForward;
    for (int32_t chunk : chunks) in_chunk(v, chunk, Phase::kForward, true);
    const std::vector<Value> inputs(node.inputs.size(), v);
    const auto out =
        add(*node.op, inputs, node.signature->text(), node.attrs, {v}, *chunks.begin(), n);
    CLEAVE_ASSERT(out.size() == 1, "'{}' is counted with something else", s.name);
    moved_[static_cast<size_t>(s.final)] = out[0];
    moved_node_[static_cast<size_t>(n)] = static_cast<NodeId>(to().nodes().size() - 1);
    done_[static_cast<size_t>(n)] = true;
    counted_.insert(s.value);
  }

  void finish() {
    for (const Source& s : graph_.sources()) {
      if (s.final != s.value)
        to().set_final(moved_[static_cast<size_t>(s.value)], moved_[static_cast<size_t>(s.final)]);
    }
    for (const Output& o : graph_.outputs())
      to().add_output(o.name, moved_[static_cast<size_t>(o.value)]);
    to().cursor = {};
  }

  struct Parts {
    NodeId sum = kNoNode;  // of the old graph
    std::vector<Value> terms;
  };
  struct Total {
    Value of = kNoValue;                   // of the old graph: an accumulator's final value
    NodeId sum = kNoNode, node = kNoNode;  // what adds up, and what adds to the accumulator
    std::vector<Value> parts;
  };

  const Graph& graph_;
  const Assignment chunks_;
  const std::vector<std::vector<NodeId>> readers_;  // by value
  RewrittenGraph result_;
  std::vector<Value> moved_;                         // by value
  std::vector<NodeId> moved_node_;                   // by node
  std::vector<bool> done_;                           // by node: added before its turn
  std::vector<int32_t> home_;                        // by value of the new graph
  std::map<std::pair<Value, int32_t>, Value> sent_;  // of the new graph, by receiving chunk
  std::set<Value> counted_;                          // states that were counted in the forward
  std::map<Value, Parts> parts_;                     // sums that go into accumulators only
  std::vector<NodeId> late_sums_;
  std::vector<Total> late_totals_;
  std::map<Value, Value> totals_;  // of an old accumulator's final value
  bool updating_ = false;
};

}  // namespace

RewrittenGraph cut(const Graph& graph, const std::vector<NodeId>& cuts) {
  CLEAVE_ASSERT(!cuts.empty(), "a cut at no node");
  return Cutting(graph, cuts).run();
}

bool sent_once(const Graph& graph, const Node& transfer) {
  if (!transfer.op->transfer || transfer.phase != Phase::kForward) return false;
  const Source* s = graph.source_of(transfer.inputs[0]);
  if (s == nullptr || s->kind == SourceKind::kData) return false;
  const NodeId writer = graph.value(s->final).producer;
  return writer == kNoNode || graph.node(writer).phase == Phase::kUpdate;
}

std::vector<int32_t> source_chunks(const Graph& graph, const std::vector<int32_t>& chunk_of) {
  std::vector<int32_t> result(graph.sources().size(), -1);
  const std::vector<int32_t> source_of = sources_of_storages(graph);
  const auto note = [&](Value v, size_t n) {
    const ValueInfo& info = graph.value(v);
    const int32_t s = source_of[static_cast<size_t>(info.storage)];
    if (s < 0 || !is_source_kept(graph.sources()[static_cast<size_t>(s)])) return;
    if (result[static_cast<size_t>(s)] < 0) result[static_cast<size_t>(s)] = chunk_of[n];
  };
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    for (Value v : node.writes) {
      if (v != kNoValue) note(v, n);
    }
    if (node.op->transfer) continue;
    for (Value v : node.inputs) {
      if (graph.value(v).producer == kNoNode) note(v, n);
    }
  }
  for (size_t s = 0; s < result.size(); ++s) {
    if (is_source_kept(graph.sources()[s]) && result[s] < 0) result[s] = 0;
  }
  return result;
}

}  // namespace cleave
