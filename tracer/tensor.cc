// What a tensor knows of itself, and its views: shapes become factor strings here.
#include "tracer/tensor.h"

#include <algorithm>

#include "graph/error.h"
#include "kernels/ops.h"
#include "tracer/reshape.h"
#include "tracer/state.h"

namespace cleave {

// --- What a tensor is ----------------------------------------------------------------------------

Tracer& Tensor::tracer() const {
  if (tracer_ == nullptr) fail("an undefined tensor is used");
  if (tracer_->state().finished) {
    fail("the trace is finished: its tensors can no longer be used");
  }
  return *tracer_;
}

Value Tensor::value() const { return tracer().state().read(record_, output_); }
Value Tensor::stored() const { return tracer().state().stored(record_, output_); }

const Shape& Tensor::shape() const {
  const Tracer::State& s = tracer().state();
  const Record& r = s.records[static_cast<size_t>(record_)];
  return s.graph.type(r.values[static_cast<size_t>(output_)]).shape;
}

DType Tensor::dtype() const {
  const Tracer::State& s = tracer().state();
  const Record& r = s.records[static_cast<size_t>(record_)];
  if (s.read_by_cast(r)) return s.options.compute;
  return s.graph.type(r.values[static_cast<size_t>(output_)]).dtype;
}

int64_t Tensor::size(int64_t dim) const {
  const int64_t d = dim < 0 ? dim + rank() : dim;
  if (d < 0 || d >= rank()) fail("size({}): {} has no such dimension", dim, to_string(shape()));
  return shape()[static_cast<size_t>(d)];
}

double Tensor::item(Loc loc) const {
  try {
    no_numbers();
  } catch (const Error& e) {
    fail("{}: item(): {}", tracer().graph().place(tracer().state().locate(loc)), e.what());
  }
}

void Tensor::no_numbers() const {
  Graph& g = tracer().graph();
  const Value v = stored();
  const ValueInfo& info = g.value(v);
  if (const Source* source = g.source_of(v)) {
    fail(
        "{}: {} '{}', {}, has no numbers: it is a dummy tensor, and what the model does must not "
        "depend on them",
        g.place(tracer_->made_at(*this)), cleave::name_of(source->kind), source->name,
        to_string(info.type));
  }
  const Node& node = g.node(info.producer);
  fail(
      "{}: the result of {}, {}, has no numbers: it is a dummy tensor, and what the model does "
      "must not depend on them",
      g.place(node.loc), node.op->name, to_string(info.type));
}

Tracer& common_tracer(std::span<const Tensor> tensors, std::string_view op, Loc loc) {
  Tracer* tracer = nullptr;
  for (const Tensor& t : tensors) {
    if (!t.defined()) {
      Tracer& here = Tracer::current();
      fail("{}: {}: an operand is an undefined tensor",
           here.graph().place(here.state().locate(loc)), op);
    }
    if (tracer != nullptr && tracer != &t.tracer()) {
      fail("{}: {}: operands of two tracers, '{}' and '{}'",
           tracer->graph().place(tracer->state().locate(loc)), op, tracer->graph().name,
           t.tracer().graph().name);
    }
    tracer = &t.tracer();
  }
  return *tracer;
}

size_t checked_dim(const Tensor& x, int64_t dim, int64_t count, std::string_view op, Loc loc) {
  const int64_t d = dim < 0 ? dim + count : dim;
  if (d >= 0 && d < count) return static_cast<size_t>(d);
  x.tracer().state().refuse(loc, op, one(x), fmt::format("there is no dimension {}", dim));
}

std::string letters_for(size_t count, std::string_view taken) {
  std::string letters;
  for (char c = 'a'; c <= 'z' && letters.size() < count; ++c) {
    if (taken.find(c) == std::string_view::npos) letters += c;
  }
  CLEAVE_ASSERT(letters.size() == count, "{} dimensions are too many", count);
  return letters;
}

// --- Views ---------------------------------------------------------------------------------------

namespace {

// `sizes` with a -1 replaced by what is left over.
Shape full_sizes(const Tensor& x, Shape sizes, std::string_view op, Loc loc) {
  int64_t known = 1;
  int64_t* unknown = nullptr;
  const std::string asked = to_string(sizes);
  for (int64_t& size : sizes) {
    if (size == -1 && unknown == nullptr) {
      unknown = &size;
    } else {
      known *= size;
    }
  }
  if (unknown != nullptr && known > 0 && x.numel() % known == 0) {
    *unknown = x.numel() / known;
    known = x.numel();
  }
  const bool positive = std::all_of(sizes.begin(), sizes.end(), [](int64_t s) { return s > 0; });
  if (known != x.numel() || !positive) {
    x.tracer().state().refuse(loc, op, one(x),
                              fmt::format("{} elements do not fit into {}", x.numel(), asked));
  }
  return sizes;
}

Tensor reshape_to(const Tensor& x, const Shape& sizes, Loc loc) {
  ReshapeFactors f = reshape_factors(x.shape(), sizes);
  return x.tracer().apply1(ops::reshape, {x}, f.text, std::move(f.attrs), loc);
}

}  // namespace

Tensor Tensor::reshape(Shape sizes, Loc loc) const {
  common_tracer(one(*this), "reshape", loc);
  sizes = full_sizes(*this, std::move(sizes), "reshape", loc);
  return sizes == shape() ? *this : reshape_to(*this, sizes, loc);
}

Tensor Tensor::view(Shape sizes, Loc loc) const {
  common_tracer(one(*this), "view", loc);
  sizes = full_sizes(*this, std::move(sizes), "view", loc);
  if (sizes == shape()) return *this;
  const Tensor result = reshape_to(*this, sizes, loc);
  const Graph& g = tracer_->graph();
  if (g.value(result.value()).storage != g.value(value()).storage) {
    tracer_->state().refuse(
        loc, "view", one(*this),
        fmt::format("no view of shape {}: its strides are {}; reshape() copies where it must",
                    to_string(sizes), to_string(g.value(value()).geometry.strides)));
  }
  return result;
}

Tensor Tensor::flatten(int64_t first, int64_t last, Loc loc) const {
  common_tracer(one(*this), "flatten", loc);
  if (rank() == 0) return reshape({1}, loc);
  const size_t from = checked_dim(*this, first, rank(), "flatten", loc);
  const size_t to = checked_dim(*this, last, rank(), "flatten", loc);
  if (from > to) {
    tracer_->state().refuse(loc, "flatten", one(*this),
                            fmt::format("dimension {} comes after {}", first, last));
  }
  Shape sizes(shape().begin(), shape().begin() + static_cast<int64_t>(from));
  int64_t product = 1;
  for (size_t d = from; d <= to; ++d) product *= shape()[d];
  sizes.push_back(product);
  sizes.insert(sizes.end(), shape().begin() + static_cast<int64_t>(to) + 1, shape().end());
  return reshape(std::move(sizes), loc);
}

Tensor Tensor::unsqueeze(int64_t dim, Loc loc) const {
  common_tracer(one(*this), "unsqueeze", loc);
  const size_t d = checked_dim(*this, dim, rank() + 1, "unsqueeze", loc);
  Shape sizes = shape();
  sizes.insert(sizes.begin() + static_cast<int64_t>(d), 1);
  return reshape_to(*this, sizes, loc);
}

Tensor Tensor::squeeze(int64_t dim, Loc loc) const {
  common_tracer(one(*this), "squeeze", loc);
  const size_t d = checked_dim(*this, dim, rank(), "squeeze", loc);
  if (shape()[d] != 1) {
    tracer_->state().refuse(loc, "squeeze", one(*this),
                            fmt::format("dimension {} is {}, not 1", dim, shape()[d]));
  }
  Shape sizes = shape();
  sizes.erase(sizes.begin() + static_cast<int64_t>(d));
  return reshape_to(*this, sizes, loc);
}

Tensor Tensor::permute(Dims order, Loc loc) const {
  common_tracer(one(*this), "permute", loc);
  const std::string from = letters_for(shape().size());
  std::string to;
  for (int64_t dim : order) to += from[checked_dim(*this, dim, rank(), "permute", loc)];
  std::string sorted = to;
  std::sort(sorted.begin(), sorted.end());
  if (sorted != from) {
    tracer_->state().refuse(loc, "permute", one(*this),
                            fmt::format("{} does not name every dimension once", to_string(order)));
  }
  if (to == from) return *this;
  return tracer_->apply1(ops::transpose, {*this}, from + "->" + to, {}, loc);
}

Tensor Tensor::transpose(int64_t d0, int64_t d1, Loc loc) const {
  common_tracer(one(*this), "transpose", loc);
  Dims order(shape().size());
  for (size_t d = 0; d < order.size(); ++d) order[d] = static_cast<int64_t>(d);
  std::swap(order[checked_dim(*this, d0, rank(), "transpose", loc)],
            order[checked_dim(*this, d1, rank(), "transpose", loc)]);
  return permute(std::move(order), loc);
}

Tensor Tensor::t(Loc loc) const {
  common_tracer(one(*this), "t", loc);
  if (rank() != 2) tracer_->state().refuse(loc, "t", one(*this), "it is no matrix");
  return transpose(0, 1, loc);
}

Tensor Tensor::slice(int64_t dim, int64_t start, int64_t stop, int64_t step, Loc loc) const {
  Tracer& tracer = common_tracer(one(*this), "slice", loc);
  const size_t d = checked_dim(*this, dim, rank(), "slice", loc);
  const int64_t size = shape()[d];
  const int64_t first = std::max<int64_t>(start < 0 ? start + size : start, 0);
  const int64_t last = std::min(stop < 0 ? stop + size : stop, size);
  if (step < 1) tracer.state().refuse(loc, "slice", one(*this), "a step is at least 1");
  if (first >= last) {
    tracer.state().refuse(loc, "slice", one(*this),
                          fmt::format("nothing between {} and {} on dimension {} of size {}", start,
                                      stop == kEnd ? "the end" : std::to_string(stop), dim, size));
  }
  const int64_t length = (last - first + step - 1) / step;
  if (length == size) return *this;
  std::string from = letters_for(shape().size(), "xy"), to = from;
  from[d] = 'X', to[d] = 'Y';
  return tracer.apply1(ops::slice, {*this}, from + "->" + to,
                       {{"Y", length}, {"start", first}, {"stop", last}, {"step", step}}, loc);
}

Tensor Tensor::select(int64_t dim, int64_t index, Loc loc) const {
  common_tracer(one(*this), "select", loc);
  const size_t d = checked_dim(*this, dim, rank(), "select", loc);
  const int64_t at = index < 0 ? index + shape()[d] : index;
  if (at < 0 || at >= shape()[d]) {
    tracer_->state().refuse(loc, "select", one(*this),
                            fmt::format("there is no index {} on dimension {}", index, dim));
  }
  const auto dim0 = static_cast<int64_t>(d);
  return slice(dim0, at, at + 1, 1, loc).squeeze(dim0, loc);
}

Tensor Tensor::expand(Shape sizes, Loc loc) const {
  Tracer& tracer = common_tracer(one(*this), "expand", loc);
  const Shape& old = shape();
  const auto refuse = [&] {
    tracer.state().refuse(loc, "expand", one(*this),
                          fmt::format("it does not broadcast to {}", to_string(sizes)));
  };
  if (sizes.size() < old.size()) refuse();
  const size_t added = sizes.size() - old.size();
  const std::string to = letters_for(sizes.size());
  std::string from = to.substr(added);
  Attrs attrs;
  bool grows = added > 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    const int64_t size = d < added ? 0 : old[d - added];
    const int64_t wanted = sizes[d] == -1 ? size : sizes[d];
    if (wanted < 1 || (size > 1 && wanted != size)) refuse();
    if (size > 1 || size == wanted) continue;
    if (size == 1) from[d - added] = '1';
    attrs.set(to.substr(d, 1), wanted);
    grows = true;
  }
  if (!grows) return *this;
  return tracer.apply1(ops::expand, {*this}, from + "->" + to, std::move(attrs), loc);
}

std::vector<Tensor> Tensor::unbind(int64_t dim, Loc loc) const {
  Tracer& tracer = common_tracer(one(*this), "unbind", loc);
  const size_t d = checked_dim(*this, dim, rank(), "unbind", loc);
  std::string from = letters_for(shape().size(), "x");
  std::string part = from;
  from[d] = 'X';
  part.erase(d, 1);
  std::string factors = from + "->" + part;
  for (int64_t i = 1; i < shape()[d]; ++i) factors += "," + part;
  return tracer.apply(ops::unbind, one(*this), factors, {}, loc);
}

std::vector<Tensor> Tensor::chunk(int64_t parts, int64_t dim, Loc loc) const {
  Tracer& tracer = common_tracer(one(*this), "chunk", loc);
  const size_t d = checked_dim(*this, dim, rank(), "chunk", loc);
  if (parts < 1 || shape()[d] % parts != 0) {
    tracer.state().refuse(loc, "chunk", one(*this),
                          fmt::format("{} does not divide into {} equal parts", shape()[d], parts));
  }
  if (parts == 1) return {*this};
  Shape sizes = shape();
  sizes[d] /= parts;
  sizes.insert(sizes.begin() + static_cast<int64_t>(d), parts);
  return reshape_to(*this, sizes, loc).unbind(static_cast<int64_t>(d), loc);
}

std::vector<Tensor> Tensor::split(int64_t size, int64_t dim, Loc loc) const {
  Tracer& tracer = common_tracer(one(*this), "split", loc);
  const int64_t whole = shape()[checked_dim(*this, dim, rank(), "split", loc)];
  if (size < 1) tracer.state().refuse(loc, "split", one(*this), "a part's size is at least 1");
  Dims sizes(static_cast<size_t>(whole / size), size);
  if (whole % size != 0) sizes.push_back(whole % size);
  return split(std::move(sizes), dim, loc);
}

std::vector<Tensor> Tensor::split(Dims sizes, int64_t dim, Loc loc) const {
  Tracer& tracer = common_tracer(one(*this), "split", loc);
  const int64_t whole = shape()[checked_dim(*this, dim, rank(), "split", loc)];
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  if (total != whole) {
    tracer.state().refuse(loc, "split", one(*this),
                          fmt::format("parts {} do not add up to {}", to_string(sizes), whole));
  }
  if (std::all_of(sizes.begin(), sizes.end(), [&](int64_t s) { return s == sizes[0]; })) {
    return chunk(static_cast<int64_t>(sizes.size()), dim, loc);
  }
  std::vector<Tensor> parts;
  int64_t start = 0;
  for (int64_t size : sizes) {
    parts.push_back(slice(dim, start, start + size, 1, loc));
    start += size;
  }
  return parts;
}

Tensor Tensor::detach(Loc loc) const {
  common_tracer(one(*this), "detach", loc);
  // A reshape to the same shape: a view, at which autodiff stops.
  ReshapeFactors f = reshape_factors(shape(), shape());
  f.attrs.set("detach", int64_t{1});
  return tracer_->apply1(ops::reshape, {*this}, f.text, std::move(f.attrs), loc);
}

// --- Copies --------------------------------------------------------------------------------------

Tensor Tensor::clone(Loc loc) const {
  return common_tracer(one(*this), "clone", loc).apply1(ops::copy, {*this}, {}, {}, loc);
}

Tensor Tensor::contiguous(Loc loc) const {
  const Graph& g = common_tracer(one(*this), "contiguous", loc).graph();
  const Geometry& geometry = g.value(value()).geometry;
  return geometry.strides == contiguous_strides(geometry.shape) ? *this : clone(loc);
}

Tensor Tensor::to(DType dtype, Loc loc) const {
  Tracer& tracer = common_tracer(one(*this), "to", loc);
  if (dtype == this->dtype()) return *this;
  const Attrs attrs{{"dtype", std::string(cleave::name_of(dtype))}};
  return tracer.apply1(ops::cast, {*this}, {}, attrs, loc);
}

}  // namespace cleave
