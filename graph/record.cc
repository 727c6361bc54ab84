#include "graph/record.h"

#include <cmath>
#include <limits>

#include "graph/error.h"
#include "graph/verify.h"

namespace cleave {
namespace {

// The one of `kinds` with this name.
template <class Kind, size_t n>
Kind kind_named(const Kind (&kinds)[n], std::string_view what, std::string_view name) {
  std::string known;
  for (Kind kind : kinds) {
    if (name_of(kind) == name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(name_of(kind));
  }
  fail("unknown {} '{}' (one of {})", what, name, known);
}

// A template that can be parsed like any factor string, for its number of operands.
std::string without_ellipses(std::string_view factors) {
  std::string text(factors.substr(0, factors.find('|')));
  for (size_t at; (at = text.find("...")) != std::string::npos;) text.erase(at, 3);
  return text;
}

// Adds records to a graph in the order of their values.
class Builder {
 public:
  Builder(const GraphRecord& record, OpLookup lookup) : record_(record), lookup_(lookup) {
    graph_.name = record.name;
    graph_.micro_batches = record.micro_batches;
  }

  // Adds the sources that come before value `until`.
  void add_sources(Value until, int32_t& where) {
    for (; next_ < record_.sources.size(); ++next_) {
      const SourceRecord& r = record_.sources[next_];
      if (r.source.value >= until) return;
      where = r.where;
      expect_next(r.source.value);
      for (int64_t size : r.type.shape) {
        if (size < 1) fail("'{}' has shape {}", r.source.name, to_string(r.type.shape));
      }
      if (!r.source.roles.empty() && r.source.roles.size() != r.type.shape.size()) {
        fail("'{}' has {} dimensions and {} roles", r.source.name, r.type.shape.size(),
             r.source.roles.size());
      }
      if (!std::isfinite(r.source.init.a))
        fail("'{}' starts at {}", r.source.name, r.source.init.a);
      graph_.add_source(r.source, r.type);
    }
  }

  void add_node(const NodeRecord& r) {
    const OpDef* op = lookup_(r.op);
    if (op == nullptr) fail("unknown op '{}'", r.op);
    if (const char* mistake = signature_mistake(r.factors)) {
      fail("factor string \"{}\": {}", r.factors, mistake);
    }
    if (r.factors.find("...") != std::string::npos) {
      fail("factor string \"{}\" is a template: '...' cannot stand here", r.factors);
    }
    // An op of any number of operands names the fewest in its template.
    const Signature& own = Signature::get(without_ellipses(op->factors.text()));
    const Signature& given = Signature::get(r.factors);
    if (r.inputs.empty() && !op->factors.text().starts_with("->")) {
      fail("'{}' needs operands: {}", r.op, op->factors.text());
    }
    if (given.inputs().size() < own.inputs().size() ||
        given.outputs().size() < own.outputs().size()) {
      fail("factor string \"{}\" has fewer operands than '{}' needs: {}", r.factors, r.op,
           op->factors.text());
    }
    if (r.outputs.size() != r.types.size()) fail("each value needs its type");
    if (!r.writes.empty() && r.writes.size() != r.outputs.size()) {
      fail("{} values, but {} targets to write", r.outputs.size(), r.writes.size());
    }
    for (Value v : r.inputs) expect_known(v);
    for (size_t o = 0; o < r.writes.size(); ++o) {
      if (r.writes[o] != kNoValue) expect_target(r.writes[o], r.types[o]);
    }
    const NodeId id = static_cast<NodeId>(graph_.nodes().size());
    if (r.follows < kNoNode || r.follows >= id) fail("follows a node that does not come before it");
    graph_.cursor.phase = r.phase;
    graph_.cursor.follows = r.follows;
    graph_.cursor.scope = graph_.intern_scope(r.scope);
    graph_.cursor.loc = {};
    if (!r.file.empty()) graph_.cursor.loc = {graph_.intern_file(r.file), r.line};
    const Value first = static_cast<Value>(graph_.values().size());
    const auto made = graph_.add(*op, r.inputs, r.factors, r.attrs, r.writes);
    if (made.size() != r.outputs.size()) {
      fail("'{}' gives {} values, not {}", r.op, made.size(), r.outputs.size());
    }
    for (size_t o = 0; o < made.size(); ++o) {
      if (r.outputs[o] != made[o]) {
        fail("%{} should be %{}: values are numbered one after the other", r.outputs[o],
             first + static_cast<Value>(o));
      }
      if (graph_.type(made[o]) != r.types[o]) {
        fail("%{} is said to be {}, but is {}", made[o], to_string(r.types[o]),
             to_string(graph_.type(made[o])));
      }
    }
    if (r.follows == kNoNode) return;
    const std::string mistake = follower_mistake(graph_.node(id), graph_.node(r.follows));
    if (!mistake.empty()) fail("{}", mistake);
  }

  void set_final(const SourceRecord& r) {
    if (r.source.final == kNoValue) return;
    expect_known(r.source.final);
    if (r.source.kind == SourceKind::kData)
      fail("data '{}' cannot have a next value", r.source.name);
    if (graph_.type(r.source.final) != r.type) {
      fail("'{}' is {}, but its next value {}", r.source.name, to_string(r.type),
           to_string(graph_.type(r.source.final)));
    }
    graph_.set_final(r.source.value, r.source.final);
  }

  void add_output(const Output& output) {
    expect_known(output.value);
    graph_.add_output(output.name, output.value);
  }

  Graph take() {
    if (const std::string mistake = accumulation_mistake(graph_); !mistake.empty()) {
      fail("{}", mistake);
    }
    graph_.cursor = {};
    return std::move(graph_);
  }

 private:
  void expect_next(Value v) const {
    const Value next = static_cast<Value>(graph_.values().size());
    if (v != next) fail("%{} should be %{}: values are numbered one after the other", v, next);
  }
  void expect_known(Value v) const {
    if (v < 0 || static_cast<size_t>(v) >= graph_.values().size()) {
      fail("%{} is not defined before this", v);
    }
  }
  void expect_target(Value v, const TensorType& written) const {
    expect_known(v);
    const ValueInfo& target = graph_.value(v);
    if (target.version != graph_.newest_version(target.storage)) {
      fail("writes %{}, which has been overwritten before", v);
    }
    if (target.type != written) {
      fail("writes %{}, which is {}, with {}", v, to_string(target.type), to_string(written));
    }
  }

  const GraphRecord& record_;
  OpLookup lookup_;
  Graph graph_;
  size_t next_ = 0;  // source
};

}  // namespace

Phase phase_named(std::string_view name) {
  return kind_named({Phase::kForward, Phase::kBackward, Phase::kUpdate}, "phase", name);
}

SourceKind source_kind_named(std::string_view name) {
  return kind_named(
      {SourceKind::kData, SourceKind::kParameter, SourceKind::kState, SourceKind::kAccumulator},
      "source", name);
}

std::string_view name_of(Init::Kind kind) {
  switch (kind) {
    case Init::Kind::kConstant: return "constant";
    case Init::Kind::kNormal: return "normal";
    case Init::Kind::kUniform: return "uniform";
  }
  return "?";
}

Init::Kind init_named(std::string_view name) {
  return kind_named({Init::Kind::kConstant, Init::Kind::kNormal, Init::Kind::kUniform}, "start",
                    name);
}

GraphRecord to_record(const Graph& graph) {
  GraphRecord record;
  record.name = graph.name;
  record.micro_batches = graph.micro_batches;
  for (const Source& s : graph.sources()) {
    SourceRecord r{s, graph.type(s.value)};
    if (s.final == s.value) r.source.final = kNoValue;
    record.sources.push_back(std::move(r));
  }
  for (const Node& n : graph.nodes()) {
    NodeRecord r;
    r.op = n.op->name;
    r.factors = n.signature->text();
    r.attrs = n.attrs;
    r.inputs = n.inputs;
    r.outputs = n.outputs;
    r.writes = n.writes;
    for (Value v : n.outputs) r.types.push_back(graph.type(v));
    r.phase = n.phase;
    r.follows = n.follows;
    r.scope = graph.scopes()[static_cast<size_t>(n.scope)];
    if (n.loc.file >= 0) {
      r.file = graph.files()[static_cast<size_t>(n.loc.file)];
      r.line = n.loc.line;
    }
    record.nodes.push_back(std::move(r));
  }
  for (const Output& o : graph.outputs()) record.outputs.push_back({o});
  return record;
}

Graph build(const GraphRecord& record, OpLookup lookup,
            const std::function<std::string(int32_t where)>& place) {
  Builder builder(record, lookup);
  int32_t where = 0;
  try {
    for (const NodeRecord& r : record.nodes) {
      builder.add_sources(r.outputs.empty() ? kNoValue : r.outputs[0], where);
      where = r.where;
      builder.add_node(r);
    }
    builder.add_sources(std::numeric_limits<Value>::max(), where);
    for (const SourceRecord& r : record.sources) {
      where = r.where;
      builder.set_final(r);
    }
    for (const OutputRecord& r : record.outputs) {
      where = r.where;
      builder.add_output(r.output);
    }
  } catch (const std::exception& e) {  // an InternalError too: what was written is the mistake
    throw Error(fmt::format("{}: {}", place(where), e.what()));
  }
  return builder.take();
}

}  // namespace cleave
