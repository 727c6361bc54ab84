// Writing in place: through views, into the storage they share.
#include <algorithm>

#include "graph/error.h"
#include "kernels/ops.h"
#include "tracer/overlap.h"
#include "tracer/reshape.h"
#include "tracer/state.h"

namespace cleave {

void Tracer::State::check_writable(const Tensor& target, std::string_view what, Loc loc) {
  int32_t id = target.record();
  for (; records[static_cast<size_t>(id)].parent >= 0;
       id = records[static_cast<size_t>(id)].parent) {
    const Record& r = records[static_cast<size_t>(id)];
    if (r.op != &ops::expand) continue;
    refuse(loc, what, one(target),
           fmt::format("the tensor is expanded at {}, and shows one element several times: clone() "
                       "it first",
                       graph.place(r.loc)));
  }
  const Record& base = records[static_cast<size_t>(id)];
  const ValueInfo& info = graph.value(base.values[0]);
  CLEAVE_ASSERT(
      info.geometry.offset == 0 && info.geometry.strides == contiguous_strides(info.geometry.shape),
      "{}: a wrapped view is written in place", what);
  if (base.source < 0 || graph.cursor.phase != Phase::kForward) return;
  const Source& source = graph.sources()[static_cast<size_t>(base.source)];
  if (source.kind != SourceKind::kParameter) return;
  refuse(loc, what, one(target),
         fmt::format("parameter '{}' is written in place in the forward: clone() it first",
                     source.name));
}

Value Tracer::State::apart_from(Value value, int32_t storage, const Geometry& written) {
  const ValueInfo& v = graph.value(value);
  if (v.storage != storage || v.geometry == written || !overlap(v.geometry, written)) return value;
  return graph.add1(ops::copy, {value});
}

bool Tracer::State::whole(int32_t record) const {
  const Record& r = records[static_cast<size_t>(record)];
  if (r.parent < 0) return true;
  return (r.op == &ops::reshape || r.op == &ops::transpose) && whole(r.parent);
}

Value Tracer::State::viewed_back(const Record& r, Value value) {
  if (r.op == &ops::transpose) {
    const size_t arrow = r.factors.find("->");
    return graph.add1(ops::transpose, {value},
                      r.factors.substr(arrow + 2) + "->" + r.factors.substr(0, arrow));
  }
  CLEAVE_ASSERT(r.op == &ops::reshape, "no writing through {}", r.op->name);
  const Record& parent = records[static_cast<size_t>(r.parent)];
  const Shape& shape = graph.type(parent.values[static_cast<size_t>(r.parent_output)]).shape;
  const ReshapeFactors f = reshape_factors(graph.type(value).shape, shape);
  return graph.add1(ops::reshape, {value}, f.text, f.attrs);
}

void Tracer::State::renew(int32_t record, Value value) {
  const Record r = records[static_cast<size_t>(record)];
  if (r.parent >= 0) {
    const Value viewed = viewed_back(r, value);
    CLEAVE_ASSERT(graph.value(viewed).storage == graph.value(value).storage,
                  "{} cannot be undone as a view", r.op->name);
    renew(r.parent, viewed);
  }
  Record& mine = records[static_cast<size_t>(record)];
  mine.values[0] = value;
  ++mine.version;
  if (r.parent >= 0) mine.seen = records[static_cast<size_t>(r.parent)].version;
}

void Tracer::State::write_part(int32_t record, int32_t output, Value value,
                               const std::string& factors, int64_t start, int64_t stop,
                               int64_t step) {
  const Value target = read(record, output);
  const Attrs attrs{{"start", start}, {"stop", stop}, {"step", step}};
  if (!whole(record)) {
    write(record, output, graph.add1(ops::write_slice, {target, value}, factors, attrs));
    return;
  }
  Geometry part = graph.value(target).geometry;
  const size_t dim = factors.find('X');
  part.offset += start * part.strides[dim];
  part.strides[dim] *= step;
  part.shape[dim] = graph.type(value).shape[dim];
  value = apart_from(value, graph.value(target).storage, part);
  renew(record, graph.add1(ops::write_slice, {target, value}, factors, attrs, {target}));
}

void Tracer::State::write(int32_t record, int32_t output, Value value) {
  const Value old = read(record, output);
  if (graph.type(old) != graph.type(value)) {
    fail("{}: {} written over {}", graph.place(graph.cursor.loc), to_string(graph.type(value)),
         to_string(graph.type(old)));
  }
  if (whole(record)) {
    value = apart_from(value, graph.value(old).storage, graph.value(old).geometry);
    renew(record, graph.add1(ops::copy, {value}, {}, {}, {old}));
    return;
  }
  const Record r = records[static_cast<size_t>(record)];
  const std::string from = r.factors.substr(0, r.factors.find("->"));
  if (r.op == &ops::slice) {
    const std::string part = r.factors.substr(from.size() + 2);
    write_part(r.parent, r.parent_output, value, from + "," + part + "->" + from,
               r.attrs.integer("start"), r.attrs.integer("stop"), r.attrs.integer("step"));
  } else if (r.op == &ops::unbind) {
    Shape shape = graph.type(value).shape;
    const size_t dim = from.find('X');
    shape.insert(shape.begin() + static_cast<int64_t>(dim), 1);
    const ReshapeFactors f = reshape_factors(graph.type(value).shape, shape);
    std::string part = from;
    part[dim] = 'Y';
    write_part(r.parent, r.parent_output, graph.add1(ops::reshape, {value}, f.text, f.attrs),
               from + "," + part + "->" + from, output, output + 1, 1);
  } else {
    write(r.parent, r.parent_output, viewed_back(r, value));
  }
}

std::vector<Tensor> Tracer::apply_in_place(const OpDef& op, std::span<const Tensor> inputs,
                                           std::string_view factors, Attrs attrs,
                                           std::span<const Tensor> targets, Loc loc) {
  State& s = *state_;
  const At at(*this, loc);
  std::vector<Value> values;
  for (const Tensor& t : inputs) values.push_back(t.value());
  std::vector<Value> writes;
  for (const Tensor& t : targets) {
    if (t.defined()) s.check_writable(t, op.name, loc);
    const bool whole = t.defined() && s.whole(t.record());
    writes.push_back(whole ? t.stored() : kNoValue);
    if (!whole) continue;
    const ValueInfo target = s.graph.value(writes.back());
    for (Value& v : values) v = s.apart_from(v, target.storage, target.geometry);
  }
  if (std::all_of(writes.begin(), writes.end(), [](Value v) { return v == kNoValue; })) {
    writes.clear();
  }
  const std::vector<Value> out = s.graph.add(op, values, factors, std::move(attrs), writes);
  CLEAVE_ASSERT(out.size() == targets.size(), "{}: {} targets", op.name, targets.size());
  std::vector<Tensor> result;
  for (size_t o = 0; o < out.size(); ++o) {
    const Tensor& t = targets[o];
    if (!t.defined()) {
      result.push_back(wrap(out[o]));
      continue;
    }
    if (!writes.empty() && writes[o] != kNoValue) {
      s.renew(t.record(), out[o]);
    } else {
      s.write(t.record(), t.output(), out[o]);
    }
    result.push_back(t);
  }
  return result;
}

// --- The functions that users call ---------------------------------------------------------------

namespace {

// Refuses shapes that do not broadcast to the target's, and other element types.
void check_fits(const Tensor& target, const Tensor& other, std::string_view what, Loc loc) {
  const Tensor both[] = {target, other};
  Tracer::State& s = common_tracer(both, what, loc).state();
  const Shape& to = target.shape();
  const Shape& from = other.shape();
  bool fits = from.size() <= to.size();
  for (size_t d = 0; fits && d < from.size(); ++d) {
    const int64_t size = from[from.size() - 1 - d];
    fits = size == 1 || size == to[to.size() - 1 - d];
  }
  if (!fits) {
    s.refuse(loc, what, both,
             fmt::format("{} does not broadcast to the shape {} written in place", to_string(from),
                         to_string(to)));
  }
}

Tensor update(const Tensor& target, const OpDef& op, const Tensor& other, std::string_view what,
              Loc loc) {
  check_fits(target, other, what, loc);
  if (target.dtype() != other.dtype()) {
    const Tensor both[] = {target, other};
    target.tracer().state().refuse(loc, what, both, "the element types differ: use to()");
  }
  target.tracer().state().check_writable(target, what, loc);
  const Tensor inputs[] = {target, other};
  return target.tracer().apply_in_place(op, inputs, {}, {}, one(target), loc)[0];
}

Tensor update(const Tensor& target, const OpDef& op, double value, std::string_view what, Loc loc) {
  common_tracer(one(target), what, loc).state().check_writable(target, what, loc);
  return target.tracer().apply_in_place(op, one(target), {}, {{"value", value}}, one(target),
                                        loc)[0];
}

}  // namespace

Tensor Tensor::add_(const Operand& other) const {
  if (other.is_number()) return update(*this, ops::add_scalar, other.number, "add_", other.loc);
  return update(*this, ops::add, other.tensor, "add_", other.loc);
}

Tensor Tensor::sub_(const Operand& other) const {
  if (other.is_number()) return update(*this, ops::add_scalar, -other.number, "sub_", other.loc);
  return update(*this, ops::sub, other.tensor, "sub_", other.loc);
}

Tensor Tensor::mul_(const Operand& other) const {
  if (other.is_number()) return update(*this, ops::scale, other.number, "mul_", other.loc);
  return update(*this, ops::mul, other.tensor, "mul_", other.loc);
}

Tensor Tensor::div_(const Operand& other) const {
  if (other.is_number()) return update(*this, ops::scale, 1 / other.number, "div_", other.loc);
  return update(*this, ops::div, other.tensor, "div_", other.loc);
}

Tensor Tensor::copy_(const Tensor& other, Loc loc) const {
  check_fits(*this, other, "copy_", loc);
  const At at(*tracer_, loc);
  Tracer::State& s = tracer_->state();
  s.check_writable(*this, "copy_", loc);
  Tensor from = other.to(dtype(), loc);
  if (from.shape() != shape()) from = from.expand(shape(), loc);
  s.write(record_, output_, from.value());
  return *this;
}

Tensor Tensor::fill_(double value, Loc loc) const {
  Tracer& tracer = common_tracer(one(*this), "fill_", loc);
  const At at(tracer, loc);
  tracer.state().check_writable(*this, "fill_", loc);
  const std::string letters = letters_for(shape().size());
  Attrs attrs{{"value", value}, {"dtype", std::string(name_of(dtype()))}};
  for (size_t d = 0; d < letters.size(); ++d) attrs.set(letters.substr(d, 1), shape()[d]);
  return tracer.apply_in_place(ops::fill, {}, "->" + letters, attrs, one(*this), loc)[0];
}

Tensor Tensor::zero_(Loc loc) const { return fill_(0, loc); }

Tensor operator+=(const Tensor& a, const Operand& b) { return a.add_(b); }
Tensor operator-=(const Tensor& a, const Operand& b) { return a.sub_(b); }
Tensor operator*=(const Tensor& a, const Operand& b) { return a.mul_(b); }
Tensor operator/=(const Tensor& a, const Operand& b) { return a.div_(b); }

}  // namespace cleave
