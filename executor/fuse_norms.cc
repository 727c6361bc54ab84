// What the backward of a norm does besides: it adds to dx the gradient that goes around the norm,
// and sums what it has made over rows, the gradient of the bias in front of the norm; as do the
// backward of GELU and of attention.
#include <string>

#include "executor/fuser.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

// The backward of a norm whose dx the tensor is.
std::optional<size_t> norm_of(const Fuser& fuser, TensorId t, const Instr& reader) {
  const std::optional<size_t> m = fuser.maker(t, reader);
  if (!m) return {};
  const Instr& norm = fuser.instr(*m);
  if (norm.op != &ops::layer_norm_backward && norm.op != &ops::rms_norm_backward) return {};
  return norm.out[0] == t ? m : std::nullopt;
}

// The backward of attention, of whose three results in their order the tensor is put together,
// those of all heads one after the other.
std::optional<size_t> attention_of(const Fuser& fuser, TensorId t, const Instr& reader) {
  const auto reshape = fuser.maker(t, reader);
  if (!reshape || fuser.instr(*reshape).op != &ops::reshape) return {};
  const auto stack = fuser.maker(fuser.instr(*reshape).in[0], reader);
  if (!stack || fuser.instr(*stack).op != &ops::stack) return {};
  const std::vector<TensorId>& parts = fuser.instr(*stack).in;
  const auto m = fuser.maker(parts[0], reader);
  if (!m || fuser.instr(*m).op != &ops::attention_backward || fuser.instr(*m).out != parts)
    return {};
  // [.., 3, heads, width] becomes [.., 3 heads width].
  const OperandDims& from = fuser.instr(*stack).signature->outputs()[0];
  const Signature& flat = *fuser.instr(*reshape).signature;
  const size_t rows = from.size() - 3;
  if (from.size() < 3 || flat.outputs()[0].size() != rows + 1 ||
      flat.outputs()[0].back().size() != 3 ||
      Signature::carries(fuser.instr(*stack).signature->inputs()[0], from[rows][0])) {
    return {};
  }
  return m;
}

// The sums of its three results, [.., heads, width] each, one after the other.
std::string attention_sum(const Signature& s) {
  const OperandDims& dq = s.outputs()[0];
  DimFactors kept = dq[dq.size() - 2];
  kept.insert(kept.end(), dq.back().begin(), dq.back().end());
  return s.operand_text({kept}).insert(1, 1, unused_letter(s));  // "(AgrE)"
}

}  // namespace

// A sum of dx and another gradient, which is there before.
bool fuse_norm_residual(Fuser& fuser, size_t i) {
  const Instr& add = fuser.instr(i);
  if ((add.op != &ops::add && add.op != &ops::add_n) || add.in.size() != 2 ||
      add.signature->inputs()[0] != add.signature->inputs()[1]) {
    return false;
  }
  for (const size_t side : {1u, 0u}) {
    const TensorId dx = add.in[side], other = add.in[1 - side];
    const std::optional<size_t> m = norm_of(fuser, dx, add);
    if (!m || fuser.readers(dx) != 1 || !fuser.before(other, *m)) continue;
    Instr& norm = fuser.instr(*m);
    if (norm.attrs.has("residual") || fuser.dtype(other) != fuser.dtype(dx)) continue;
    SignatureParts factors = norm.signature->parts();
    factors.inputs.push_back(factors.inputs[0]);
    norm.signature = &Signature::get(factors);
    norm.attrs.set("residual", int64_t{1});
    norm.in.push_back(other);
    fuser.give_result(*m, 0, i);
    return true;
  }
  return false;
}

// A sum over rows of what is made: its maker sums it, too.
bool fuse_column_sum(Fuser& fuser, size_t i) {
  const Instr& sum = fuser.instr(i);
  if (sum.op != &ops::sum || !sums_rows(*sum.signature)) return false;
  const TensorId summed = sum.in[0];
  const std::optional<size_t> attention = attention_of(fuser, summed, sum);
  std::optional<size_t> m = attention ? attention : norm_of(fuser, summed, sum);
  if (!m) {
    m = fuser.maker(summed, sum);
    if (!m) return false;
    const Instr& maker = fuser.instr(*m);
    const bool product = maker.op == &ops::linear && maker.attrs.has("gelu_backward");
    if (maker.op != &ops::gelu_backward && !product) return false;
  }
  Instr& made = fuser.instr(*m);
  if (made.attrs.has("sum")) return false;
  made.attrs.set("sum", int64_t{1});
  const Signature& s = *made.signature;
  SignatureParts factors = s.parts();
  factors.outputs.push_back(attention ? attention_sum(s) : s.operand_text({s.outputs()[0].back()}));
  made.signature = &Signature::get(factors);
  if (attention) made.letter_atoms.push_back({3});
  if (sum.attrs.has("dtype")) set_wide(made, made.out.size());
  fuser.give_result(*m, made.out.size(), i);
  return true;
}

}  // namespace cleave
