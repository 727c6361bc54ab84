#include "graph/repeats.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "graph/error.h"

namespace cleave {
namespace {

// --- Hashes --------------------------------------------------------------------------------------

// Mixes 64-bit words; the same in every process.
class Hasher {
 public:
  void add(uint64_t x) {
    state_ ^= x + 0x9e3779b97f4a7c15u + (state_ << 6) + (state_ >> 2);
    state_ ^= state_ >> 30;
    state_ *= 0xbf58476d1ce4e5b9u;
    state_ ^= state_ >> 27;
    state_ *= 0x94d049bb133111ebu;
    state_ ^= state_ >> 31;
  }
  void add(std::string_view text) {
    add(text.size());
    for (size_t i = 0; i < text.size(); i += 8) {
      uint64_t word = 0;
      std::memcpy(&word, text.data() + i, std::min<size_t>(8, text.size() - i));
      add(word);
    }
  }
  void add(const std::vector<int64_t>& list) {
    add(list.size());
    for (int64_t x : list) add(static_cast<uint64_t>(x));
  }
  void add(const TensorType& type) {
    add(static_cast<uint64_t>(type.dtype));
    add(type.shape);
  }
  void add(const AttrValue& value) {
    add(value.index());
    if (const auto* integer = std::get_if<int64_t>(&value)) add(static_cast<uint64_t>(*integer));
    if (const auto* text = std::get_if<std::string>(&value)) add(std::string_view(*text));
    if (const auto* list = std::get_if<std::vector<int64_t>>(&value)) add(*list);
    if (const auto* real = std::get_if<double>(&value)) {
      uint64_t bits = 0;
      std::memcpy(&bits, real, sizeof bits);
      add(bits);
    }
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0;
};

// --- Runs ----------------------------------------------------------------------------------------

class Finder {
 public:
  explicit Finder(const Graph& graph)
      : graph_(graph),
        hash_(graph.nodes().size()),
        last_reader_(graph.values().size(), kNoNode),
        readers_(graph.values().size()),
        start_(graph.values().size(), kNoValue) {
    for (size_t n = 0; n < hash_.size(); ++n) {
      if (graph.nodes()[n].phase != Phase::kForward) continue;
      const NodeId id = static_cast<NodeId>(n);
      hash_[n] = node_hash(graph, id);
      const Node& node = graph.nodes()[n];
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        const size_t v = static_cast<size_t>(node.inputs[i]);
        last_reader_[v] = id;
        if (graph.values()[v].source >= 0) readers_[v].emplace_back(id, i);
      }
    }
  }

  // The best run of [begin, end), then what its two sides hold.
  void search(NodeId begin, NodeId end, std::vector<Repeat>& result) {
    Run best;
    for (NodeId period = 1; 2 * period <= end - begin; ++period) {
      best_with(period, begin, end, best);
    }
    if (best.repeat.count == 0) return;
    const Repeat repeat = narrowest(best);
    search(begin, repeat.first, result);
    result.push_back(repeat);
    search(repeat.end(), end, result);
  }

 private:
  struct Run {
    Repeat repeat;
    NodeId spare = 0;  // nodes after the last copy that begin one more
    int64_t nodes() const { return int64_t{repeat.period} * repeat.count; }
  };

  bool same_hash(NodeId n, NodeId period) const {
    return hash_[static_cast<size_t>(n)] == hash_[static_cast<size_t>(n + period)];
  }

  // Stretches where hashes repeat at this distance hold a multiple of it, so only those are tried.
  void best_with(NodeId period, NodeId begin, NodeId end, Run& best) {
    const NodeId last = end - period;  // pairs are (n, n + period), n < last
    NodeId done = begin;
    for (NodeId n = begin; n < last; n += period) {
      if (n < done || !same_hash(n, period)) continue;
      NodeId low = n, high = n + 1;
      while (low > done && same_hash(low - 1, period)) --low;
      while (high < last && same_hash(high, period)) ++high;
      done = high;
      for (NodeId first = low; high - first >= period;) {
        if (int64_t{(high - first) / period + 1} * period <= best.nodes()) break;
        NodeId next = first + 1;
        const NodeId stop = extend(first, period, high, next);
        const NodeId pairs = stop - first;
        const Run run{{first, period, pairs / period + 1}, pairs % period};
        if (pairs >= period && run.nodes() > best.nodes()) best = run;
        if (stop == high) break;
        first = std::max(first + 1, next);
      }
    }
  }

  // How far a run from `first` goes: the first n < high for which n and n + period do not
  // correspond. `next`: no run between `first` and it can go beyond that n.
  NodeId extend(NodeId first, NodeId period, NodeId high, NodeId& next) {
    touched_.clear();
    NodeId n = first;
    for (; n < high; ++n) {
      const Node &a = graph_.node(n), &b = graph_.node(n + period);
      bool same = a.writes.size() == b.writes.size();
      for (size_t i = 0; i < a.inputs.size() && same; ++i) {
        same = corresponds(a.inputs[i], b.inputs[i], first, period, n, next);
      }
      for (size_t i = 0; i < a.writes.size() && same; ++i) {
        same = corresponds(a.writes[i], b.writes[i], first, period, n, next);
      }
      if (same) continue;
      if (n >= first + period) next = n - period + 1;  // it must fall into a first copy
      break;
    }
    for (Value v : touched_) start_[static_cast<size_t>(v)] = kNoValue;
    return n;
  }

  // Whether operand `a` of node n is to its copy what `b` is to the next.
  bool corresponds(Value a, Value b, NodeId first, NodeId period, NodeId n, NodeId& next) {
    if (a == kNoValue || b == kNoValue) return a == b;
    const ValueInfo &x = graph_.value(a), &y = graph_.value(b);
    if (a == b) {
      if (x.producer < first) return true;
      next = x.producer + 1;
      return false;
    }
    const bool carried = n < first + period && x.producer < first && y.producer >= first &&
                         y.producer < first + period;
    if (carried) {
      Value& start = start_[static_cast<size_t>(b)];
      if (start == kNoValue) {
        start = a;
        touched_.push_back(b);
      }
      return start == a;
    }
    if (x.source >= 0 && y.source >= 0 && private_pair(a, b, period)) return true;
    if (x.producer >= 0 && y.producer - x.producer == period && x.output == y.output) return true;
    // It may yet be carried, in a run that begins after `a` and has `b` in its first copy.
    const NodeId later = std::max(x.producer + 1, y.producer - period + 1);
    next = later > first && later <= std::min(n, y.producer) ? later : n + 1;
    return false;
  }

  // Sources of one type whose readers lie `period` apart, each within one period.
  bool private_pair(Value a, Value b, NodeId period) const {
    const auto &x = readers_[static_cast<size_t>(a)], &y = readers_[static_cast<size_t>(b)];
    if (x.size() != y.size() || graph_.source_of(a)->kind != graph_.source_of(b)->kind) {
      return false;
    }
    if (graph_.type(a) != graph_.type(b)) return false;
    if (x.empty()) return true;
    if (x.back().first - x.front().first >= period) return false;
    for (size_t i = 0; i < x.size(); ++i) {
      if (y[i].first - x[i].first != period || y[i].second != x[i].second) return false;
    }
    return true;
  }

  // The run begun where the fewest values pass from the first copy to later nodes; of those, where
  // the scopes on both sides have least in common.
  Repeat narrowest(const Run& run) {
    const Repeat& r = run.repeat;
    Repeat best = r;
    std::pair least = {SIZE_MAX, SIZE_MAX};
    for (NodeId shift = 0; shift <= run.spare; ++shift) {
      const Repeat moved{r.first + shift, r.period, r.count};
      const NodeId border = moved.first + r.period;
      size_t width = 0;
      for (NodeId n = moved.first; n < border; ++n) {
        for (Value v : graph_.node(n).outputs) {
          width += last_reader_[static_cast<size_t>(v)] >= border;
        }
      }
      const std::pair cut = {width, common_scopes(border - 1, border)};
      if (cut >= least) continue;
      NodeId next = 0;
      const NodeId pairs = r.period * (r.count - 1);
      if (extend(moved.first, r.period, moved.first + pairs, next) != moved.first + pairs) continue;
      least = cut;
      best = moved;
    }
    return best;
  }

  // How many names the scopes of two nodes begin with in common ("h.0.attn", "h.1.attn": 1).
  size_t common_scopes(NodeId a, NodeId b) const {
    const std::string x = graph_.scopes()[static_cast<size_t>(graph_.node(a).scope)] + ".";
    const std::string y = graph_.scopes()[static_cast<size_t>(graph_.node(b).scope)] + ".";
    size_t count = 0;
    for (size_t i = 0; i < std::min(x.size(), y.size()) && x[i] == y[i]; ++i) count += x[i] == '.';
    return count;
  }

  const Graph& graph_;
  std::vector<uint64_t> hash_;                                   // of forward nodes
  std::vector<NodeId> last_reader_;                              // in the forward, by value
  std::vector<std::vector<std::pair<NodeId, size_t>>> readers_;  // of sources, by value
  // What the first copy takes where a later one takes this value; all kNoValue between calls.
  std::vector<Value> start_;
  std::vector<Value> touched_;  // entries of start_ in use
};

// --- Layers --------------------------------------------------------------------------------------

// The one layer that all agree on. Nothing agrees on itself: it has no layer.
class Agreement {
 public:
  void add(Layer layer) {
    same_ &= !any_ || layer == layer_;
    layer_ = layer;
    any_ = true;
  }
  bool any() const { return any_; }
  Layer layer() const { return same_ ? layer_ : Layer{}; }

 private:
  Layer layer_;
  bool any_ = false, same_ = true;
};

}  // namespace

uint64_t node_hash(const Graph& graph, NodeId id) {
  const Node& node = graph.node(id);
  Hasher hasher;
  hasher.add(node.op->name);
  hasher.add(std::string_view(node.signature->text()));
  hasher.add(node.extents);
  hasher.add(static_cast<uint64_t>(node.phase));
  for (const auto& [name, value] : node.attrs.items()) {
    if (name == "name" && std::holds_alternative<std::string>(value)) continue;
    hasher.add(std::string_view(name));
    hasher.add(value);
  }
  for (Value v : node.inputs) hasher.add(graph.type(v));
  for (Value v : node.outputs) hasher.add(graph.type(v));
  for (Value v : node.writes) hasher.add(static_cast<uint64_t>(v == kNoValue));
  return hasher.value();
}

std::vector<Repeat> repeats(const Graph& graph) {
  Finder finder(graph);
  std::vector<Repeat> result;
  const NodeId size = static_cast<NodeId>(graph.nodes().size());
  for (NodeId begin = 0; begin < size;) {
    NodeId end = begin;
    while (end < size && graph.node(end).phase == Phase::kForward) ++end;
    finder.search(begin, end, result);
    begin = end + 1;
  }
  return result;
}

Layers layers_of(const Graph& graph, const std::vector<Repeat>& repeats) {
  Layers layers{std::vector<Layer>(graph.nodes().size()),
                std::vector<Layer>(graph.sources().size())};
  for (size_t r = 0; r < repeats.size(); ++r) {
    const Repeat& repeat = repeats[r];
    for (NodeId n = repeat.first; n < repeat.end(); ++n) {
      layers.nodes[static_cast<size_t>(n)] = {static_cast<int32_t>(r),
                                              (n - repeat.first) / repeat.period};
    }
  }
  std::vector<Agreement> forward(graph.sources().size()), others(graph.sources().size());
  const auto place_sources = [&](Phase from, Phase to, std::vector<Agreement>& readers) {
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      const Node& node = graph.nodes()[n];
      if (node.phase < from || node.phase > to) continue;
      for (Value v : node.inputs) {
        const int32_t s = graph.value(v).source;
        if (s >= 0) readers[static_cast<size_t>(s)].add(layers.nodes[n]);
      }
    }
  };
  place_sources(Phase::kForward, Phase::kForward, forward);
  for (size_t s = 0; s < forward.size(); ++s) layers.sources[s] = forward[s].layer();
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.phase == Phase::kForward) continue;
    if (node.follows != kNoNode) {
      layers.nodes[n] = layers.nodes[static_cast<size_t>(node.follows)];
      continue;
    }
    Agreement parameters, makers;
    NodeId last = kNoNode;
    for (Value v : node.inputs) {
      const ValueInfo& value = graph.value(v);
      if (value.producer != kNoNode) {
        last = std::max(last, value.producer);
        makers.add(layers.nodes[static_cast<size_t>(value.producer)]);
      } else if (graph.source_of(v)->kind == SourceKind::kParameter) {
        parameters.add(layers.sources[static_cast<size_t>(value.source)]);
      }
    }
    if (parameters.any()) {
      layers.nodes[n] = parameters.layer();
    } else if (node.phase == Phase::kUpdate) {
      layers.nodes[n] = makers.layer();
    } else if (last != kNoNode) {
      layers.nodes[n] = layers.nodes[static_cast<size_t>(last)];
    }
  }
  place_sources(Phase::kBackward, Phase::kUpdate, others);
  for (size_t s = 0; s < others.size(); ++s) {
    if (!forward[s].any()) layers.sources[s] = others[s].layer();
  }
  return layers;
}

}  // namespace cleave
