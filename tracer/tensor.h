// Dummy tensors: what a model is run on to be traced. A Tensor has a shape, an element type, a
// storage and a version, and no numbers; everything done to it becomes a node of the graph that the
// thread's Tracer records.
//
//   Tracer tracer("mlp");
//   Tensor x = data("x", {32, 64}, DType::kF32, {"batch", ""});
//   Tensor w = parameter("w", {128, 64}, {Init::Kind::kNormal, 0.02});
//   Tensor h = gelu(linear(x, w));
//   h.slice(1, 0, 64).mul_(2.0);                    // in place, seen through h
//   tracer.output("loss", mean(square(h)));
//   Graph graph = tracer.finish();
//
// A Tensor is a cheap handle: copies are the same tensor. View functions (view, transpose, slice,
// select, unbind, split, chunk, expand, squeeze, ...) give tensors that share the storage of their
// base; after a write in place through any of them, every alias reads the new contents. Functions
// ending in "_" write in place.
//
// Dimensions may be negative: they then count from the end. Every function remembers the line that
// called it; a wrong shape throws Error with that line, the op and the shapes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "graph/graph.h"

namespace cleave {

class Tracer;
struct Operand;
using Dims = std::vector<int64_t>;

// The line of the caller, as a default argument: std::source_location, which clang 14 cannot use.
struct Loc {
  const char* file = "";
  int32_t line = 0;
  static constexpr Loc current(const char* file = __builtin_FILE(),
                               int32_t line = __builtin_LINE()) {
    return {file, line};
  }
};

inline constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();

// start, start+step, ... before stop; negative bounds count from the end; step >= 1.
struct Slice {
  Slice(int64_t start_, int64_t stop_, int64_t step_ = 1, Loc loc_ = Loc::current())
      : start(start_), stop(stop_), step(step_), loc(loc_) {}
  int64_t start, stop, step;
  Loc loc;
};

// A position on a dimension, and the line that asked for it.
struct Index {
  Index(int64_t at_, Loc loc_ = Loc::current()) : at(at_), loc(loc_) {}
  int64_t at;
  Loc loc;
};

class Tensor {
 public:
  Tensor() = default;  // undefined: holds nothing, defined() is false
  bool defined() const { return tracer_ != nullptr; }
  const Shape& shape() const;  // a reference that lasts until the next op
  int64_t size(int64_t dim) const;
  int64_t rank() const { return static_cast<int64_t>(shape().size()); }
  int64_t numel() const { return cleave::numel(shape()); }
  DType dtype() const;  // as it is read: a parameter in a bf16 trace is bf16

  // There are no numbers to read: these throw Error, naming the op, the shape and the line.
  double item(Loc loc = Loc::current()) const;
  template <class T>
  requires std::is_arithmetic_v<T>
  explicit operator T() const { no_numbers(); }

  // --- Views: share this tensor's storage ---
  // One size may be -1. view: Error when the strides do not allow a view; reshape copies then.
  Tensor view(Shape sizes, Loc loc = Loc::current()) const;
  Tensor reshape(Shape sizes, Loc loc = Loc::current()) const;
  Tensor flatten(int64_t first = 0, int64_t last = -1, Loc loc = Loc::current()) const;
  Tensor unsqueeze(int64_t dim, Loc loc = Loc::current()) const;  // a dimension of size 1 at `dim`
  Tensor squeeze(int64_t dim, Loc loc = Loc::current()) const;    // its size must be 1
  Tensor transpose(int64_t d0, int64_t d1, Loc loc = Loc::current()) const;
  Tensor t(Loc loc = Loc::current()) const;  // of a matrix
  Tensor permute(Dims order, Loc loc = Loc::current()) const;
  Tensor slice(int64_t dim, int64_t start, int64_t stop = kEnd, int64_t step = 1,
               Loc loc = Loc::current()) const;
  Tensor select(int64_t dim, int64_t index, Loc loc = Loc::current()) const;
  Tensor operator[](Slice s) const { return slice(0, s.start, s.stop, s.step, s.loc); }
  Tensor operator[](Index i) const { return select(0, i.at, i.loc); }
  // Sizes of 1, and leading dimensions that are missing, grow to `sizes` (-1: as it is). What an
  // expanded tensor shows several times must not be written in place.
  Tensor expand(Shape sizes, Loc loc = Loc::current()) const;
  // Every index of a dimension: one op, which can be split along all other dimensions.
  std::vector<Tensor> unbind(int64_t dim = 0, Loc loc = Loc::current()) const;
  // Equal parts along a dimension by reshape and unbind, so that each part can still be split.
  std::vector<Tensor> chunk(int64_t parts, int64_t dim, Loc loc = Loc::current()) const;
  // Parts of `size`; equal parts are a chunk, a smaller last one makes them slices.
  std::vector<Tensor> split(int64_t size, int64_t dim, Loc loc = Loc::current()) const;
  std::vector<Tensor> split(Dims sizes, int64_t dim, Loc loc = Loc::current()) const;
  // The same numbers, with no gradient through it; shares the storage.
  Tensor detach(Loc loc = Loc::current()) const;

  // --- Copies ---
  Tensor clone(Loc loc = Loc::current()) const;
  Tensor contiguous(Loc loc = Loc::current()) const;       // itself when it is already
  Tensor to(DType dtype, Loc loc = Loc::current()) const;  // itself when it has that type

  // --- Reductions; no dims: all of them ---
  Tensor sum(Dims dims = {}, bool keepdim = false, Loc loc = Loc::current()) const;
  Tensor mean(Dims dims = {}, bool keepdim = false, Loc loc = Loc::current()) const;
  Tensor max(Dims dims = {}, bool keepdim = false, Loc loc = Loc::current()) const;
  Tensor logsumexp(Dims dims = {}, bool keepdim = false, Loc loc = Loc::current()) const;

  // --- In place; `other` broadcasts to this tensor's shape ---
  Tensor add_(const Operand& other) const;
  Tensor sub_(const Operand& other) const;
  Tensor mul_(const Operand& other) const;
  Tensor div_(const Operand& other) const;
  Tensor copy_(const Tensor& other, Loc loc = Loc::current()) const;
  Tensor fill_(double value, Loc loc = Loc::current()) const;
  Tensor zero_(Loc loc = Loc::current()) const;

  // --- For code that adds nodes itself (layers, optimizers, autodiff) ---
  Tracer& tracer() const;
  int32_t record() const { return record_; }
  int32_t output() const { return output_; }
  // The newest value, re-derived when an alias was written. In the forward phase a parameter kept
  // in another type than the tracer's compute type is read through one cast.
  Value value() const;
  // The newest value as it is stored: no cast.
  Value stored() const;

 private:
  friend class Tracer;
  Tensor(Tracer* tracer, int32_t record, int32_t output)
      : tracer_(tracer), record_(record), output_(output) {}
  [[noreturn]] void no_numbers() const;

  Tracer* tracer_ = nullptr;
  int32_t record_ = -1;  // of the tracer: a base, or views of one tensor
  int32_t output_ = 0;   // which output of a view op with several
};

// A tensor or a number, and the line that used it: what operators take.
struct Operand {
  Operand(const Tensor& t, Loc l = Loc::current()) : tensor(t), loc(l) {}
  Operand(double x, Loc l = Loc::current()) : number(x), loc(l) {}
  bool is_number() const { return !tensor.defined(); }
  Tensor tensor;  // undefined: a number
  double number = 0;
  Loc loc;
};

// Shapes broadcast as in NumPy; element types must be equal.
Tensor operator+(const Operand& a, const Operand& b);
Tensor operator-(const Operand& a, const Operand& b);
Tensor operator*(const Operand& a, const Operand& b);
Tensor operator/(const Operand& a, const Operand& b);
Tensor operator-(const Operand& a);
// In place.
Tensor operator+=(const Tensor& a, const Operand& b);
Tensor operator-=(const Tensor& a, const Operand& b);
Tensor operator*=(const Tensor& a, const Operand& b);
Tensor operator/=(const Tensor& a, const Operand& b);

Tensor exp(const Tensor& x, Loc loc = Loc::current());
Tensor log(const Tensor& x, Loc loc = Loc::current());
Tensor sqrt(const Tensor& x, Loc loc = Loc::current());
Tensor square(const Tensor& x, Loc loc = Loc::current());
Tensor reciprocal(const Tensor& x, Loc loc = Loc::current());
Tensor relu(const Tensor& x, Loc loc = Loc::current());
Tensor tanh(const Tensor& x, Loc loc = Loc::current());
Tensor sigmoid(const Tensor& x, Loc loc = Loc::current());
Tensor silu(const Tensor& x, Loc loc = Loc::current());
Tensor gelu(const Tensor& x, Loc loc = Loc::current());  // by tanh
Tensor softmax(const Tensor& x, int64_t dim = -1, Loc loc = Loc::current());
Tensor sum(const Tensor& x, Dims dims = {}, bool keepdim = false, Loc loc = Loc::current());
Tensor mean(const Tensor& x, Dims dims = {}, bool keepdim = false, Loc loc = Loc::current());
Tensor max(const Tensor& x, Dims dims = {}, bool keepdim = false, Loc loc = Loc::current());
Tensor logsumexp(const Tensor& x, Dims dims = {}, bool keepdim = false, Loc loc = Loc::current());

// The sum of tensors of one shape and element type, in one op.
Tensor add_all(const std::vector<Tensor>& terms, Loc loc = Loc::current());

// a [..., m, k] times b [..., k, n]: leading dimensions broadcast.
Tensor matmul(const Tensor& a, const Tensor& b, Loc loc = Loc::current());
// x [..., k] times w [n, k] transposed: a linear layer.
Tensor linear(const Tensor& x, const Tensor& w, Loc loc = Loc::current());
// Any product with sums over shared letters: contract(a, b, "bsk,nk->bsn").
Tensor contract(const Tensor& a, const Tensor& b, std::string_view factors,
                Loc loc = Loc::current());

Tensor cat(const std::vector<Tensor>& parts, int64_t dim, Loc loc = Loc::current());
Tensor stack(const std::vector<Tensor>& parts, int64_t dim = 0, Loc loc = Loc::current());

// Constants, in the tracer's compute type unless one is named.
Tensor full(Shape shape, double value, Loc loc = Loc::current());
Tensor full(Shape shape, double value, DType dtype, Loc loc = Loc::current());
Tensor zeros(Shape shape, Loc loc = Loc::current());
Tensor ones(Shape shape, Loc loc = Loc::current());

// Sources of the thread's tracer. The names of parameters and states are put behind the current
// scope ("h.0.attn" + "." + name); names are unique in a graph.
// A trained weight, stored in Tracer::parameter_dtype() and read in the compute type.
Tensor parameter(std::string_view name, Shape shape, Init init, Loc loc = Loc::current());
// Kept from step to step, not trained. What it holds when the trace is finished is what the next
// step starts from.
Tensor state(std::string_view name, Shape shape, DType dtype, Init init, Loc loc = Loc::current());
// Starts every step at zero and is added to by each of its micro-batches, before the update.
Tensor accumulator(std::string_view name, Shape shape, DType dtype, Loc loc = Loc::current());
// Fed anew each step. `roles`: what each dimension is ("batch", "sequence", ""); may be empty.
Tensor data(std::string_view name, Shape shape, DType dtype, std::vector<std::string> roles = {},
            Loc loc = Loc::current());

struct TracerOptions {
  // Of the forward and backward. Of 16 bits: parameters stay f32 and are cast where they are read.
  DType compute = DType::kF32;
  bool dropout = true;  // false: dropout layers drop nothing, as when a model is evaluated
};

// Records one graph. From its construction to its end it is the tracer of its thread (tracers
// nest); tensors must not outlive it.
class Tracer {
 public:
  explicit Tracer(std::string name, TracerOptions options = {});
  ~Tracer();
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  // The thread's innermost tracer; Error when there is none.
  static Tracer& current();

  Graph& graph();
  const Graph& graph() const;
  DType compute_dtype() const;
  DType parameter_dtype() const;  // f32, or f64 when that is the compute type

  // Nodes recorded from now on belong to this phase.
  void set_phase(Phase phase);
  Phase phase() const;
  const std::string& scope() const;  // "h.0.attn"; empty at the top

  // The number of updates made: an i32 scalar state "step", made when first asked for. An optimizer
  // increments it in the update phase.
  Tensor step();
  // The number of forward passes done: an i32 scalar state "pass", made when first asked for.
  // Dropout reads it.
  Tensor pass();
  // Increments it, if anything has asked for it: the last thing that a pass does.
  void count_pass(Loc loc);

  // All parameters, in the order of their creation.
  const std::vector<Tensor>& parameters() const;
  // The name of a parameter, a state or a data input.
  const std::string& name_of(const Tensor& source) const;
  // The line that made it.
  SourceLoc made_at(const Tensor& source) const;

  // Declares what the caller wants from a step (the loss).
  void output(std::string name, const Tensor& tensor);

  // Adds one node and returns its outputs. View ops share the storage of their first input.
  // `factors`: empty for the op's template. Element types are the caller's care.
  std::vector<Tensor> apply(const OpDef& op, std::span<const Tensor> inputs,
                            std::string_view factors, Attrs attrs, Loc loc);
  Tensor apply1(const OpDef& op, std::initializer_list<Tensor> inputs, std::string_view factors,
                Attrs attrs, Loc loc);
  // The same, with output i written over targets[i] (an undefined target: a new storage). A target
  // is a whole storage, such as a parameter or a state, or a view that can be written; afterwards
  // it and its aliases read the new contents. The op's kernel reads an element before it writes the
  // same one. Optimizers call this in the update phase, where parameters are read as stored.
  std::vector<Tensor> apply_in_place(const OpDef& op, std::span<const Tensor> inputs,
                                     std::string_view factors, Attrs attrs,
                                     std::span<const Tensor> targets, Loc loc);
  // A tensor for a value that a node added to graph() directly; the value owns its storage or is a
  // view that nobody will write.
  Tensor wrap(Value value);

  // Sets the final value of every state and parameter, and returns the graph. The tracer is empty
  // afterwards.
  Graph finish();

  struct State;  // tracer/state.h: private to tracer/
  State& state() const { return *state_; }

 private:
  friend class Tensor;
  Tensor tensor(int32_t record, int32_t output) { return {this, record, output}; }
  std::unique_ptr<State> state_;
  Tracer* outer_;
};

// Names a part of the model for as long as it lives: Scope s("attn") inside "h.0" is "h.0.attn".
class Scope {
 public:
  explicit Scope(std::string_view name);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Tracer& tracer_;
  std::string outer_;
};

// For library code: ops recorded while it lives carry this line, the one of the user who called the
// layer, instead of the library's own. The outermost one counts.
class LocationScope {
 public:
  explicit LocationScope(Loc loc);
  ~LocationScope();
  LocationScope(const LocationScope&) = delete;
  LocationScope& operator=(const LocationScope&) = delete;

 private:
  Tracer& tracer_;
  bool owner_;
};

}  // namespace cleave
