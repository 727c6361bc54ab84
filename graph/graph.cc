#include "graph/graph.h"

#include <algorithm>

#include "graph/error.h"

namespace cleave {

std::string_view name_of(Phase phase) {
  switch (phase) {
    case Phase::kForward: return "forward";
    case Phase::kBackward: return "backward";
    case Phase::kUpdate: return "update";
  }
  return "?";
}

std::string_view name_of(SourceKind kind) {
  switch (kind) {
    case SourceKind::kData: return "data";
    case SourceKind::kParameter: return "param";
    case SourceKind::kState: return "state";
    case SourceKind::kAccumulator: return "accumulator";
  }
  return "?";
}

Value Graph::add_value(ValueInfo info) {
  values_.push_back(std::move(info));
  return static_cast<Value>(values_.size() - 1);
}

Value Graph::add_source(Source source, TensorType type) {
  if (!source_named_.emplace(source.name, sources_.size()).second) {
    fail("there are two inputs or states named '{}'", source.name);
  }
  check_shape(type.shape);
  const int32_t storage = num_storages();
  newest_.push_back(0);
  Geometry geometry{0, type.shape, contiguous_strides(type.shape)};
  ValueInfo info;
  info.type = std::move(type);
  info.storage = storage;
  info.geometry = std::move(geometry);
  info.source = static_cast<int32_t>(sources_.size());
  source.value = add_value(std::move(info));
  source.final = source.value;
  sources_.push_back(std::move(source));
  return sources_.back().value;
}

std::vector<TensorType> Graph::input_types(const Node& node) const {
  std::vector<TensorType> types;
  types.reserve(node.inputs.size());
  for (Value v : node.inputs) types.push_back(type(v));
  return types;
}

std::vector<Value> Graph::add(const OpDef& op, std::vector<Value> inputs, std::string_view factors,
                              Attrs attrs, std::vector<Value> writes) {
  Node node;
  node.op = &op;
  node.inputs = std::move(inputs);
  node.attrs = std::move(attrs);
  node.writes = std::move(writes);
  node.phase = cursor.phase;
  node.follows = cursor.follows;
  node.loc = cursor.loc;
  node.scope = cursor.scope;
  for (Value v : node.inputs) {
    CLEAVE_ASSERT(v >= 0 && static_cast<size_t>(v) < values_.size(), "{}: no value %{}", op.name,
                  v);
  }
  const std::vector<TensorType> in = input_types(node);
  std::vector<TensorType> out;
  try {
    node.signature =
        &Signature::get(expand_factors(factors.empty() ? op.factors.text() : factors, in));
    node.extents = solve_extents(*node.signature, node.attrs, in);
    out = op.infer(call(node, in));
    for (const TensorType& t : out) check_shape(t.shape);
  } catch (const Error& e) {
    std::string shapes;
    for (const TensorType& t : in) shapes += (shapes.empty() ? "" : ", ") + to_string(t);
    fail("{}: {}({}): {}", place(node.loc), op.name, shapes, e.what());
  }
  CLEAVE_ASSERT(out.size() == node.signature->outputs().size(), "{}: {} outputs", op.name,
                out.size());
  CLEAVE_ASSERT(node.writes.empty() || node.writes.size() == out.size(), "{}: writes", op.name);
  std::optional<std::vector<Geometry>> views;
  if (op.view != nullptr) views = op.view(call(node, in), value(node.inputs[0]).geometry);
  CLEAVE_ASSERT(!views || views->size() == out.size(), "{}: views", op.name);

  const NodeId id = static_cast<NodeId>(nodes_.size());
  for (size_t o = 0; o < out.size(); ++o) {
    ValueInfo info;
    info.type = out[o];
    info.producer = id;
    info.output = static_cast<int32_t>(o);
    if (const Value target = node.overwrites(o); target != kNoValue) {
      const ValueInfo& old = value(target);
      CLEAVE_ASSERT(old.type == out[o], "{}: overwrites {} with {}", op.name, to_string(old.type),
                    to_string(out[o]));
      int32_t& newest = newest_[static_cast<size_t>(old.storage)];
      CLEAVE_ASSERT(old.version == newest, "{}: overwrites an old version", op.name);
      info.storage = old.storage;
      info.version = ++newest;
      info.geometry = old.geometry;
    } else if (views) {
      const ValueInfo& base = value(node.inputs[0]);
      info.storage = base.storage;
      info.version = base.version;
      info.geometry = (*views)[o];
    } else {
      info.storage = num_storages();
      newest_.push_back(0);
      info.geometry = {0, out[o].shape, contiguous_strides(out[o].shape)};
    }
    node.outputs.push_back(add_value(std::move(info)));
  }
  nodes_.push_back(std::move(node));
  return nodes_.back().outputs;
}

Value Graph::add1(const OpDef& op, std::vector<Value> inputs, std::string_view factors, Attrs attrs,
                  std::vector<Value> writes) {
  const auto out = add(op, std::move(inputs), factors, std::move(attrs), std::move(writes));
  CLEAVE_ASSERT(out.size() == 1, "{} has {} outputs", op.name, out.size());
  return out[0];
}

void Graph::add_output(std::string output_name, Value v) {
  outputs_.push_back({std::move(output_name), v});
}

void Graph::set_final(Value source, Value final) {
  CLEAVE_ASSERT(value(source).source >= 0, "%{} is not a source", source);
  Source& s = sources_[static_cast<size_t>(value(source).source)];
  CLEAVE_ASSERT(s.kind != SourceKind::kData, "data '{}' cannot have a next value", s.name);
  CLEAVE_ASSERT(type(source) == type(final), "'{}' changes its type", s.name);
  s.final = final;
}

const Source* Graph::source_of(Value v) const {
  const int32_t s = value(v).source;
  return s < 0 ? nullptr : &sources_[static_cast<size_t>(s)];
}

const Source* Graph::source_named(const std::string& source_name) const {
  const auto at = source_named_.find(source_name);
  return at == source_named_.end() ? nullptr : &sources_[at->second];
}

namespace {

int32_t intern(std::vector<std::string>& table, std::string_view text) {
  const auto at = std::find(table.rbegin(), table.rend(), text);  // most often a recent one
  if (at != table.rend()) return static_cast<int32_t>(table.rend() - at - 1);
  table.emplace_back(text);
  return static_cast<int32_t>(table.size() - 1);
}

}  // namespace

int32_t Graph::intern_file(std::string_view file) { return intern(files_, file); }
int32_t Graph::intern_scope(std::string_view scope) { return intern(scopes_, scope); }

std::string Graph::place(SourceLoc loc) const {
  if (loc.file < 0) return "?";
  return fmt::format("{}:{}", files_[static_cast<size_t>(loc.file)], loc.line);
}

std::vector<bool> live_nodes(const Graph& graph) {
  std::vector<bool> wanted(graph.values().size(), false);
  for (const Output& o : graph.outputs()) wanted[static_cast<size_t>(o.value)] = true;
  for (const Source& s : graph.sources()) wanted[static_cast<size_t>(s.final)] = true;
  std::vector<bool> live(graph.nodes().size(), false);
  for (size_t n = graph.nodes().size(); n-- > 0;) {
    const Node& node = graph.nodes()[n];
    live[n] = std::any_of(node.outputs.begin(), node.outputs.end(),
                          [&](Value v) { return wanted[static_cast<size_t>(v)]; });
    if (!live[n]) continue;
    for (Value v : node.inputs) wanted[static_cast<size_t>(v)] = true;
  }
  return live;
}

Graph without_dead_nodes(const Graph& graph) {
  const std::vector<bool> live = live_nodes(graph);
  std::vector<bool> read(graph.values().size(), false);
  for (const Output& o : graph.outputs()) read[static_cast<size_t>(o.value)] = true;
  for (const Source& s : graph.sources()) {
    if (s.final != s.value) read[static_cast<size_t>(s.final)] = true;
  }
  for (size_t n = 0; n < live.size(); ++n) {
    if (!live[n]) continue;
    for (Value v : graph.nodes()[n].inputs) read[static_cast<size_t>(v)] = true;
  }
  Graph result;
  result.name = graph.name;
  result.micro_batches = graph.micro_batches;
  for (const std::string& f : graph.files()) result.intern_file(f);
  for (const std::string& s : graph.scopes()) result.intern_scope(s);
  std::vector<Value> moved(graph.values().size(), kNoValue);
  std::vector<NodeId> moved_node(graph.nodes().size(), kNoNode);
  for (const Source& s : graph.sources()) {
    const bool needed = s.kind != SourceKind::kData || read[static_cast<size_t>(s.value)];
    if (needed) moved[static_cast<size_t>(s.value)] = result.add_source(s, graph.type(s.value));
  }
  const auto map = [&](const std::vector<Value>& values) {
    std::vector<Value> mapped;
    for (Value v : values) mapped.push_back(v == kNoValue ? v : moved[static_cast<size_t>(v)]);
    return mapped;
  };
  // A target that a dead write made is replaced by the newest live value that lies as it does; with
  // none, the write makes the storage.
  std::vector<std::vector<Value>> kept(static_cast<size_t>(graph.num_storages()));
  const auto keep = [&](Value v) {
    kept[static_cast<size_t>(graph.value(v).storage)].push_back(moved[static_cast<size_t>(v)]);
  };
  for (const Source& s : graph.sources()) {
    if (moved[static_cast<size_t>(s.value)] != kNoValue) keep(s.value);
  }
  const auto target = [&](Value old) {
    if (moved[static_cast<size_t>(old)] != kNoValue) return moved[static_cast<size_t>(old)];
    const std::vector<Value>& values = kept[static_cast<size_t>(graph.value(old).storage)];
    const auto at = std::find_if(values.rbegin(), values.rend(), [&](Value v) {
      const ValueInfo& info = result.value(v);
      return info.version == result.newest_version(info.storage) && info.type == graph.type(old) &&
             info.geometry == graph.value(old).geometry;
    });
    return at == values.rend() ? kNoValue : *at;
  };
  for (size_t n = 0; n < live.size(); ++n) {
    if (!live[n]) continue;
    const Node& node = graph.nodes()[n];
    std::vector<Value> writes;
    for (Value old : node.writes) writes.push_back(old == kNoValue ? old : target(old));
    if (std::all_of(writes.begin(), writes.end(), [](Value v) { return v == kNoValue; })) {
      writes.clear();
    }
    result.cursor = {.phase = node.phase,
                     .follows = node.follows == kNoNode
                                    ? kNoNode
                                    : moved_node[static_cast<size_t>(node.follows)],
                     .loc = node.loc,
                     .scope = node.scope};
    const auto out = result.add(*node.op, map(node.inputs), node.signature->text(), node.attrs,
                                std::move(writes));
    for (size_t o = 0; o < out.size(); ++o) {
      moved[static_cast<size_t>(node.outputs[o])] = out[o];
      keep(node.outputs[o]);
    }
    moved_node[n] = static_cast<NodeId>(result.nodes().size() - 1);
  }
  for (const Source& s : graph.sources()) {
    if (moved[static_cast<size_t>(s.value)] == kNoValue || s.final == s.value) continue;
    result.set_final(moved[static_cast<size_t>(s.value)], moved[static_cast<size_t>(s.final)]);
  }
  for (const Output& o : graph.outputs()) {
    result.add_output(o.name, moved[static_cast<size_t>(o.value)]);
  }
  result.cursor = {};
  return result;
}

}  // namespace cleave
