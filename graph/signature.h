// Factor strings: "bmk,bkn->bmn" names every dimension of every operand of an op. Shape inference,
// sharding and cost are all read off this one string.
//
//   signature := operands "->" operands [ "|" note ("," note)* ]
//   operands  := operand ("," operand)*       an empty operand is a scalar
//   operand   := dimension*
//   dimension := letter                       one factor
//              | "(" letter letter+ ")"       a compound: several factors, the outermost first
//              | "1"                          a dimension of size 1 that is broadcast
//              | "..."                        any number of dimensions (templates only)
//   letter    := a-z | A-Z                    a capital factor is whole: it cannot be split, unless
//                                             the op says how (OpDef::split)
//   note      := letter ":" ("sum" | "max" | "lse" | "indexed")
//
// A factor that an output lacks, but an input has, is reduced into that output: its shards hold
// partial results, combined by `sum` (the default), `max` or `lse` (log-sum-exp). `indexed` says
// that the numbers depend on where along the factor a shard lies, so that a kernel must be told.
// The notes `halo` and `scan` are reserved.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cleave {

enum class Reduction : uint8_t { kSum, kMax, kLogSumExp };
std::string_view name_of(Reduction reduction);  // "sum", "max", "lse"
Reduction reduction_named(std::string_view name);

struct Factor {
  char letter = 0;
  bool whole = false;    // a capital letter
  bool indexed = false;  // the kernel needs the shard's position along this factor
  Reduction reduction = Reduction::kSum;
};

// What a factor is to a matrix product: [m, k] by [k, n] for every index of the batch.
enum class ProductRole : uint8_t { kBatch, kRows, kColumns, kInner };

using DimFactors = std::vector<int8_t>;       // indices of factors, outermost first; empty for "1"
using OperandDims = std::vector<DimFactors>;  // one entry a dimension

// A factor string taken apart, for composing another.
struct SignatureParts {
  std::vector<std::string> inputs, outputs;  // the text of each operand: "bsk"
  std::string notes;                         // "s:indexed,t:indexed", or nothing
};

// A parsed factor string without "...". Obtained from Signature::get, which interns it: a
// reference stays valid for the life of the process, and equal texts give the same object.
class Signature {
 public:
  // Throws InternalError when the text is malformed.
  static const Signature& get(std::string_view text);
  static const Signature& get(const SignatureParts& parts);
  SignatureParts parts() const;

  const std::string& text() const { return text_; }
  const std::vector<Factor>& factors() const { return factors_; }
  const std::vector<OperandDims>& inputs() const { return inputs_; }
  const std::vector<OperandDims>& outputs() const { return outputs_; }

  // The text of one operand, for composing other factor strings ("bsk").
  std::string input_text(size_t i) const { return operand_text(inputs_[i]); }
  std::string output_text(size_t i) const { return operand_text(outputs_[i]); }
  std::string operand_text(const OperandDims& operand) const;

  // Index of the factor with this letter (case matters); -1 when there is none.
  int factor(char letter) const;
  // Whether the operand carries the factor in any of its dimensions.
  static bool carries(const OperandDims& operand, int factor);
  bool in_inputs(int factor) const;
  // Present in an input, absent from this output.
  bool reduced_in(int factor, size_t output) const;
  // By factor, when the op is a matrix product by its factors: every factor in two of the first two
  // operands and the first result, or in all three, and one of them summed over; other operands and
  // results are what is done to that result before it is stored. Empty when it is not.
  const std::vector<ProductRole>& product_roles() const { return product_roles_; }

 private:
  friend class SignatureParser;
  std::string text_;
  std::vector<Factor> factors_;
  std::vector<OperandDims> inputs_, outputs_;
  std::vector<ProductRole> product_roles_;
};

// Grammar check usable at compile time; null when well formed, else what is wrong.
constexpr const char* signature_mistake(std::string_view s) {
  const size_t arrow = s.find("->");
  if (arrow == std::string_view::npos) return "a factor string needs '->'";
  const size_t bar = s.find('|');
  const std::string_view body = s.substr(0, bar);
  int depth = 0, inside = 0;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (c == '(') {
      if (depth != 0) return "compounds do not nest";
      depth = 1, inside = 0;
    } else if (c == ')') {
      if (depth != 1) return "')' without '('";
      if (inside < 2) return "a compound has at least two factors";
      depth = 0;
    } else if (letter) {
      ++inside;
    } else if (c == '.') {
      if (depth != 0 || body.substr(i, 3) != "...") return "'...' is three dots, outside '()'";
      i += 2;
    } else if (c == '-') {
      if (i != arrow) return "one '->' only";
      ++i;
    } else if (c == '1' || c == ',') {
      if (depth != 0) return "a compound holds letters only";
    } else {
      return "a dimension is a letter, '1', '(...)' or '...'";
    }
  }
  if (depth != 0) return "'(' is not closed";
  if (bar == std::string_view::npos) return nullptr;
  std::string_view notes = s.substr(bar + 1);
  while (true) {
    const std::string_view note = notes.substr(0, notes.find(','));
    if (note.size() < 3 || note[1] != ':') return "a note is letter:kind";
    if (body.find(note[0]) == std::string_view::npos) return "a note names an unknown factor";
    const std::string_view kind = note.substr(2);
    if (kind == "halo" || kind == "scan") return "halo and scan are reserved, not built yet";
    if (kind != "sum" && kind != "max" && kind != "lse" && kind != "indexed") {
      return "a note's kind is sum, max, lse or indexed";
    }
    if (note.size() == notes.size()) return nullptr;
    notes = notes.substr(note.size() + 1);
  }
}

// A factor string as written in an OpDef: a malformed one does not compile. May hold "...".
class FactorString {
 public:
  consteval FactorString(const char* text) : text_(text) {  // NOLINT(runtime/explicit)
    if (signature_mistake(text_) != nullptr) throw signature_mistake(text_);
  }
  constexpr std::string_view text() const { return text_; }

 private:
  std::string_view text_;
};

}  // namespace cleave
