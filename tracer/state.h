// What a tracer remembers of the tensors it has handed out; private to tracer/.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "tracer/tensor.h"

namespace cleave {

// What a Tensor points to. Either a base: a storage with its newest value. Or the outputs of one
// view op, with what it takes to make them again when the tensor they show was written.
struct Record {
  // The tensor viewed: a record and its output. -1: this is a base.
  int32_t parent = -1;
  int32_t parent_output = 0;
  const OpDef* op = nullptr;
  std::string factors;
  Attrs attrs;
  SourceLoc loc;
  int32_t scope = 0;

  std::vector<Value> values;  // of a base: one. Of views: as of the parent's version `seen`
  int64_t version = 0;        // counts the changes of `values`
  int64_t seen = 0;

  int32_t source = -1;     // index into Graph::sources of a base that is one
  Value cast = kNoValue;   // of a parameter in another type than the compute type: as it is read,
  int64_t cast_seen = -1;  // when its version was this
};

struct Tracer::State {
  Graph graph;
  TracerOptions options;
  bool finished = false;
  std::vector<Record> records;
  std::string scope;
  bool located = false;  // a LocationScope has set cursor.loc
  std::vector<Tensor> parameters;
  Tensor step, pass;                    // undefined until asked for
  std::map<std::string, int> dropouts;  // how many there are in each scope
  std::vector<SourceLoc> made;          // of each source

  SourceLoc locate(Loc loc);
  int32_t add_base(Value value, int32_t source = -1);

  // The newest value of a record's output, replaying view ops where needed.
  Value stored(int32_t record, int32_t output);
  // The same, as ops read it: through the cast.
  Value read(int32_t record, int32_t output);
  bool read_by_cast(const Record& record) const;
  // Makes `value` the newest contents of a record's output: writes it through the chain of views
  // into their storage. The new nodes take the graph's cursor.
  void write(int32_t record, int32_t output, Value value);
  // The same for start, start+step, ... of one dimension of it, the X of the factors of
  // write_slice.
  void write_part(int32_t record, int32_t output, Value value, const std::string& factors,
                  int64_t start, int64_t stop, int64_t step);
  // Whether a record shows each element of its storage once: a base, transposed and reshaped. Such
  // a view is overwritten as if it were the base.
  bool whole(int32_t record) const;
  // What the viewed tensor is when its transpose or reshape is `value`.
  Value viewed_back(const Record& view, Value value);
  // `value`, which has overwritten a whole record, is its newest one.
  void renew(int32_t record, Value value);
  // Refuses targets that must not be written, and says why.
  void check_writable(const Tensor& target, std::string_view what, Loc loc);
  // A copy of `value` where it shares elements with `written`, part of a storage about to be
  // overwritten, in another arrangement; else itself.
  Value apart_from(Value value, int32_t storage, const Geometry& written);

  // Throws Error with the line, the op, and the shapes of its operands.
  [[noreturn]] void refuse(Loc loc, std::string_view op, std::span<const Tensor> operands,
                           const std::string& why);
};

// For the time it lives, nodes added to the graph carry the caller's line and the current scope.
class At {
 public:
  At(Tracer& tracer, Loc loc);
  ~At();
  At(const At&) = delete;
  At& operator=(const At&) = delete;

 private:
  Graph& graph_;
  Cursor before_;
};

// `dim`, counted from the front. Error when there is no such dimension; `count`: of how many.
size_t checked_dim(const Tensor& x, int64_t dim, int64_t count, std::string_view op, Loc loc);

// Lower-case letters "abc..." for `count` dimensions, without those in `taken`.
std::string letters_for(size_t count, std::string_view taken = {});

inline std::span<const Tensor> one(const Tensor& t) { return {&t, 1}; }

// The tracer of tensors that meet in one op; Error when one is undefined or of another tracer.
Tracer& common_tracer(std::span<const Tensor> tensors, std::string_view op, Loc loc);

}  // namespace cleave
