// A matrix product to which a bias, a residual, or both are added before it is stored: what fusion
// makes of a product and the sums behind it (executor/fuse.h). Models write the parts.
//
//   a, b [, bias] [, residual] -> c       bias: the last factor of c; residual: as c
//
// What is summed over is whole, or each partial sum would add the rest.
#include <string>
#include <vector>

#include "kernels/cuda_kernel.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"

namespace cleave {

void linear_cuda(const KernelArgs& args);
int64_t matmul_cuda_workspace(const OpCall& call);

namespace {

size_t operands_of(const Attrs& attrs) {
  return 2 + static_cast<size_t>(attrs.integer_or("bias", 0) != 0) +
         static_cast<size_t>(attrs.integer_or("residual", 0) != 0);
}

std::vector<TensorType> infer_linear(const OpCall& call) {
  if (call.in.size() != operands_of(call.attrs)) {
    fail("linear: {} operands, and its attributes say {}", call.in.size(), operands_of(call.attrs));
  }
  for (const TensorType& t : call.in) {
    if (!is_float(t.dtype) || t.dtype != call.in[0].dtype) {
      fail("linear needs floating operands of one element type, got {}", to_string(t));
    }
  }
  return infer_from_factors(call);
}

double linear_flops(const OpCall& call) {
  double flops = 2;
  for (const int64_t extent : call.extents) flops *= static_cast<double>(extent);
  return flops;
}

// An op on some of the operands, with the factors that it has of ours.
void run(const OpDef& op, const std::string& factors, const KernelArgs& args,
         std::vector<TensorView> in) {
  const Signature& signature = Signature::get(factors);
  std::vector<Extent> extents;
  for (const Factor& f : signature.factors()) extents.push_back(args.extent(f.letter));
  op.cpu({.signature = signature,
          .attrs = args.attrs,
          .in = in,
          .out = args.out,
          .extents = extents,
          .workspace = args.workspace,
          .seed = args.seed,
          .team = args.team});
}

void linear_cpu(const KernelArgs& args) {
  const Signature& s = args.signature;
  const std::string c = s.output_text(0);
  run(ops::matmul, s.input_text(0) + "," + s.input_text(1) + "->" + c, args,
      {args.in[0], args.in[1]});
  for (size_t i = 2; i < args.in.size(); ++i) {
    run(ops::add, c + "," + s.input_text(i) + "->" + c, args, {args.out[0], args.in[i]});
  }
}

}  // namespace

constinit const OpDef ops::linear = {
    .name = "linear",
    .factors = "...K,nK,n->...n",
    .infer = infer_linear,
    .flops = linear_flops,
    .cpu = linear_cpu,
    .cuda = cuda_kernel<linear_cuda>(),
    .cuda_workspace = cuda_workspace<matmul_cuda_workspace>(),
};

}  // namespace cleave
