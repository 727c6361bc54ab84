// A chain: pointwise ops and reductions that one kernel carries out, as plain data. The op `chain`
// holds it in its attributes as text:
//
//   parts: "add ab,b->ab 0 1; max ab->a p0; sub ab,a->ab p0 p1; scale ab->ab p2 value=d0.5"
//   results: "p3 p1"
//
// A part is an op, its factors in the letters of the chain's own factor string (small or capital),
// what it reads (operand 0 of the chain, p2: the result of part 2, p2.1: its second), and its
// attributes. Numbers between parts are never stored, so they are not rounded to the type that the
// part's result has: on the GPU all of them are f32 (f64 where an operand or a result is).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graph/op.h"

namespace cleave {

struct ChainRef {
  int32_t part = -1;   // -1: an operand of the chain
  int32_t number = 0;  // which operand, or which of the part's results
  bool operator==(const ChainRef&) const = default;
};

struct ChainPart {
  const OpDef* op = nullptr;
  const Signature* signature = nullptr;
  Attrs attrs;
  std::vector<ChainRef> in;
};

struct Chain {
  std::vector<ChainPart> parts;
  std::vector<ChainRef> results;
};

// The attributes of an op `chain`, and back. REQUIRES: attributes of parts are numbers, or words
// without blanks, ';' and '='.
Attrs attrs_of(const Chain& chain);
Chain chain_of(const Attrs& attrs);

// What a part does to the elements of its operands.
enum class PartKind : uint8_t {
  kNone,     // it cannot be in a chain
  kElement,  // each result at one place is made of the operands there
  kReduce,   // sum, max, logsumexp
  kRows,     // reduces, and then goes over the same elements again: softmax
};
PartKind part_kind(const OpDef& op);

// How a chain is carried out. Axes are factors of the chain's signature, by their index there;
// those of size 1 do not count.
struct ChainPlan {
  enum class Kind : uint8_t {
    kElements,  // no reduction
    kRows,      // threads that share a row reduce it, as often as the chain says
    kSplit,     // rows or columns in pieces, whose results a second kernel puts together
  };
  Kind kind = Kind::kElements;
  std::vector<int8_t> kept, reduced;  // the axes looped over, outermost first
  int64_t rows = 1, length = 1;       // products of their sizes
  bool columns = false;               // kSplit: what is reduced lies outside what is kept
  int64_t pieces = 1;                 // kSplit: so many are reduced apart
  int reductions = 0;                 // kSplit: so many are kept in the workspace
};

// The plan, or nothing when one kernel cannot do it: reductions must be over one set of axes, every
// result must lie along all axes, or along all that are kept, and what depends on a reduction must
// go along the fastest axis. Only sizes and factors count, so that the same bits come out however
// the operands lie.
std::optional<ChainPlan> plan_of(const Chain& chain, const Signature& signature,
                                 std::span<const int64_t> extents);

// By part and result: its type, given those of the chain's operands.
std::vector<std::vector<TensorType>> types_of(const Chain& chain, const OpCall& call);

// The axis of each factor of a part: the factor of the chain with this letter.
std::vector<int8_t> axes_of(const Signature& part, const Signature& chain);

}  // namespace cleave
