// Recording: sources, scopes, lines, and the records through which tensors follow their storage.
#include <algorithm>
#include <filesystem>

#include "graph/error.h"
#include "kernels/ops.h"
#include "tracer/overlap.h"
#include "tracer/state.h"

namespace cleave {

namespace {

thread_local Tracer* innermost = nullptr;

}  // namespace

// --- Tracer --------------------------------------------------------------------------------------

Tracer::Tracer(std::string name, TracerOptions options)
    : state_(std::make_unique<State>()), outer_(innermost) {
  if (!is_float(options.compute)) {
    fail("tracer '{}': the compute type is a float type, not {}", name,
         cleave::name_of(options.compute));
  }
  state_->graph.name = std::move(name);
  state_->options = options;
  innermost = this;
}

Tracer::~Tracer() { innermost = outer_; }

Tracer& Tracer::current() {
  if (innermost == nullptr) fail("no Tracer is active in this thread: make one first");
  return *innermost;
}

Graph& Tracer::graph() { return state_->graph; }
const Graph& Tracer::graph() const { return state_->graph; }
DType Tracer::compute_dtype() const { return state_->options.compute; }

DType Tracer::parameter_dtype() const {
  return compute_dtype() == DType::kF64 ? DType::kF64 : DType::kF32;
}

void Tracer::set_phase(Phase phase) { state_->graph.cursor.phase = phase; }
Phase Tracer::phase() const { return state_->graph.cursor.phase; }
const std::string& Tracer::scope() const { return state_->scope; }
const std::vector<Tensor>& Tracer::parameters() const { return state_->parameters; }

const std::string& Tracer::name_of(const Tensor& source) const {
  const int32_t s = state_->records[static_cast<size_t>(source.record())].source;
  CLEAVE_ASSERT(s >= 0, "the tensor is no source");
  return graph().sources()[static_cast<size_t>(s)].name;
}

SourceLoc Tracer::made_at(const Tensor& source) const {
  const int32_t s = state_->records[static_cast<size_t>(source.record())].source;
  CLEAVE_ASSERT(s >= 0, "the tensor is no source");
  return state_->made[static_cast<size_t>(s)];
}

void Tracer::output(std::string name, const Tensor& tensor) {
  if (!tensor.defined()) fail("output '{}' is an undefined tensor", name);
  for (const Output& o : graph().outputs()) {
    if (o.name == name) fail("there are two outputs named '{}'", name);
  }
  state_->graph.add_output(std::move(name), tensor.value());
}

std::vector<Tensor> Tracer::apply(const OpDef& op, std::span<const Tensor> inputs,
                                  std::string_view factors, Attrs attrs, Loc loc) {
  const At at(*this, loc);
  std::vector<Value> values;
  for (const Tensor& t : inputs) {
    CLEAVE_ASSERT(&t.tracer() == this, "{}: a tensor of another tracer", op.name);
    values.push_back(t.value());
  }
  Graph& g = state_->graph;
  const std::vector<Value> out = g.add(op, values, factors, attrs);
  std::vector<Tensor> result;
  const bool views = op.view != nullptr && g.value(out[0]).storage == g.value(values[0]).storage;
  if (!views) {
    for (Value v : out) result.push_back(wrap(v));
    return result;
  }
  Record r;
  r.parent = inputs[0].record();
  r.parent_output = inputs[0].output();
  r.op = &op;
  r.factors = g.nodes().back().signature->text();
  r.attrs = std::move(attrs);
  r.loc = g.cursor.loc;
  r.scope = g.cursor.scope;
  r.values = out;
  r.seen = state_->records[static_cast<size_t>(r.parent)].version;
  state_->records.push_back(std::move(r));
  const auto id = static_cast<int32_t>(state_->records.size() - 1);
  for (size_t o = 0; o < out.size(); ++o) result.push_back(tensor(id, static_cast<int32_t>(o)));
  return result;
}

Tensor Tracer::apply1(const OpDef& op, std::initializer_list<Tensor> inputs,
                      std::string_view factors, Attrs attrs, Loc loc) {
  const std::vector<Tensor> out =
      apply(op, std::vector<Tensor>(inputs), factors, std::move(attrs), loc);
  CLEAVE_ASSERT(out.size() == 1, "{} has {} outputs", op.name, out.size());
  return out[0];
}

Tensor Tracer::wrap(Value value) { return tensor(state_->add_base(value), 0); }

Graph Tracer::finish() {
  State& s = *state_;
  for (const Record& r : s.records) {
    if (r.source < 0) continue;
    const Source& source = s.graph.sources()[static_cast<size_t>(r.source)];
    if (source.kind == SourceKind::kData || r.values[0] == source.value) continue;
    s.graph.set_final(source.value, r.values[0]);
  }
  s.graph.cursor = {};
  s.finished = true;
  return std::move(s.graph);
}

// --- Sources -------------------------------------------------------------------------------------

namespace {

Tensor add_source(SourceKind kind, std::string name, TensorType type, Init init,
                  std::vector<std::string> roles, Loc loc) {
  Tracer& tracer = Tracer::current();
  Tracer::State& s = tracer.state();
  const SourceLoc made = s.locate(loc);
  const std::string place = s.graph.place(made);
  for (int64_t size : type.shape) {
    if (size < 1)
      fail("{}: '{}' has shape {}: sizes are at least 1", place, name, to_string(type.shape));
  }
  if (!roles.empty() && roles.size() != type.shape.size()) {
    fail("{}: '{}' has {} dimensions and {} roles", place, name, type.shape.size(), roles.size());
  }
  if (s.graph.source_named(name) != nullptr) {
    fail("{}: there is already an input, a state or a parameter named '{}'", place, name);
  }
  Source source{.kind = kind, .name = std::move(name), .init = init, .roles = std::move(roles)};
  const Value value = s.graph.add_source(std::move(source), std::move(type));
  s.made.push_back(made);
  Tensor t = tracer.wrap(value);
  s.records.back().source = s.graph.value(value).source;
  return t;
}

std::string in_scope(std::string_view name) {
  const std::string& scope = Tracer::current().scope();
  return scope.empty() ? std::string(name) : scope + "." + std::string(name);
}

}  // namespace

Tensor parameter(std::string_view name, Shape shape, Init init, Loc loc) {
  Tracer& tracer = Tracer::current();
  Tensor t = add_source(SourceKind::kParameter, in_scope(name),
                        {tracer.parameter_dtype(), std::move(shape)}, init, {}, loc);
  tracer.state().parameters.push_back(t);
  return t;
}

Tensor state(std::string_view name, Shape shape, DType dtype, Init init, Loc loc) {
  return add_source(SourceKind::kState, in_scope(name), {dtype, std::move(shape)}, init, {}, loc);
}

Tensor data(std::string_view name, Shape shape, DType dtype, std::vector<std::string> roles,
            Loc loc) {
  return add_source(SourceKind::kData, std::string(name), {dtype, std::move(shape)}, {},
                    std::move(roles), loc);
}

Tensor accumulator(std::string_view name, Shape shape, DType dtype, Loc loc) {
  return add_source(SourceKind::kAccumulator, in_scope(name), {dtype, std::move(shape)}, {}, {},
                    loc);
}

namespace {

Tensor counter(Tensor& known, const char* name) {
  if (!known.defined()) {
    known = add_source(SourceKind::kState, name, {DType::kI32, {}}, {}, {}, Loc::current());
  }
  return known;
}

}  // namespace

Tensor Tracer::step() { return counter(state_->step, "step"); }

Tensor Tracer::pass() { return counter(state_->pass, "pass"); }

void Tracer::count_pass(Loc loc) {
  const Tensor& pass = state_->pass;
  if (!pass.defined()) return;
  apply_in_place(ops::increment, one(pass), "", {}, one(pass), loc);
}

// --- Where ops are recorded ----------------------------------------------------------------------

Scope::Scope(std::string_view name) : tracer_(Tracer::current()), outer_(tracer_.scope()) {
  std::string& scope = tracer_.state().scope;
  scope = outer_.empty() ? std::string(name) : outer_ + "." + std::string(name);
}

Scope::~Scope() { tracer_.state().scope = outer_; }

LocationScope::LocationScope(Loc loc)
    : tracer_(Tracer::current()), owner_(!tracer_.state().located) {
  if (!owner_) return;
  tracer_.state().graph.cursor.loc = tracer_.state().locate(loc);
  tracer_.state().located = true;
}

LocationScope::~LocationScope() {
  if (!owner_) return;
  tracer_.state().located = false;
  tracer_.state().graph.cursor.loc = {};
}

At::At(Tracer& tracer, Loc loc) : graph_(tracer.graph()), before_(graph_.cursor) {
  if (tracer.state().finished) fail("the trace is finished: its tensors can no longer be used");
  graph_.cursor.loc = tracer.state().locate(loc);
  graph_.cursor.scope = graph_.intern_scope(tracer.scope());
}

At::~At() { graph_.cursor = before_; }

SourceLoc Tracer::State::locate(Loc loc) {
  if (located) return graph.cursor.loc;
  const std::string file = std::filesystem::path(loc.file).filename().string();
  return {graph.intern_file(file), loc.line};
}

// --- State ---------------------------------------------------------------------------------------

int32_t Tracer::State::add_base(Value value, int32_t source) {
  Record r;
  r.values = {value};
  r.source = source;
  records.push_back(std::move(r));
  return static_cast<int32_t>(records.size() - 1);
}

Value Tracer::State::stored(int32_t record, int32_t output) {
  const auto id = static_cast<size_t>(record);
  if (records[id].parent < 0) return records[id].values[0];
  const Value base = read(records[id].parent, records[id].parent_output);
  Record& r = records[id];
  const int64_t newest = records[static_cast<size_t>(r.parent)].version;
  if (r.seen != newest) {
    // The tensor viewed was written: view its new contents in the same way.
    const Cursor before = graph.cursor;
    graph.cursor.loc = r.loc;
    graph.cursor.scope = r.scope;
    r.values = graph.add(*r.op, {base}, r.factors, r.attrs);
    graph.cursor = before;
    CLEAVE_ASSERT(graph.value(r.values[0]).storage == graph.value(base).storage,
                  "{} is no longer a view", r.op->name);
    r.seen = newest;
    ++r.version;
  }
  return r.values[static_cast<size_t>(output)];
}

bool Tracer::State::read_by_cast(const Record& r) const {
  return r.source >= 0 && graph.cursor.phase == Phase::kForward &&
         graph.sources()[static_cast<size_t>(r.source)].kind == SourceKind::kParameter &&
         graph.type(r.values[0]).dtype != options.compute;
}

Value Tracer::State::read(int32_t record, int32_t output) {
  const Value value = stored(record, output);
  Record& r = records[static_cast<size_t>(record)];
  if (!read_by_cast(r)) return value;
  if (r.cast_seen != r.version) {
    r.cast = graph.add1(ops::cast, {value}, {},
                        Attrs{{"dtype", std::string(cleave::name_of(options.compute))}});
    r.cast_seen = r.version;
  }
  return r.cast;
}

void Tracer::State::refuse(Loc loc, std::string_view op, std::span<const Tensor> operands,
                           const std::string& why) {
  std::string shapes;
  for (const Tensor& t : operands) {
    shapes += (shapes.empty() ? "" : ", ") + to_string(TensorType{t.dtype(), t.shape()});
  }
  fail("{}: {}({}): {}", graph.place(locate(loc)), op, shapes, why);
}

}  // namespace cleave
