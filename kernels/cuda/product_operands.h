// Operands of a contraction as the matrices that cuBLASLt takes, and the workspace of a product:
// what cuBLASLt is given, and copies of operands that do not lie as matrices. No CUDA here: plans
// ask for the workspace, too.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/contraction.h"
#include "kernels/cuda/workspace.h"

namespace cleave {

// An operand as matrices [rows, columns], one for each index of the batch.
struct Matrices {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t row = 0, column = 0;  // strides
  Shape strides;                // of every factor
  bool copied = false;
};

// cuBLASLt takes matrices of which one of the two strides is 1 and the other covers a column.
inline bool lies_as_matrix(int64_t rows, int64_t columns, int64_t row, int64_t column) {
  return (column == 1 && row >= columns) || (row == 1 && column >= rows);
}

// A copy has its place in the workspace, behind `used` bytes, which grow by it.
inline Matrices as_matrices(const KernelArgs& args, const TensorView& t, const Shape& strides,
                            std::span<const int8_t> batch, std::span<const int8_t> rows,
                            std::span<const int8_t> columns, int64_t& used) {
  Matrices m{
      t.data,  t.dtype, common_stride(args, rows, strides), common_stride(args, columns, strides),
      strides, false};
  const int64_t r = size_of(args, rows), c = size_of(args, columns);
  // The stride of a side of size 1 is of no matter.
  if (c == 1 && m.row > 0) m.column = m.row == 1 ? r : 1;
  if (r == 1 && m.column > 0) m.row = m.column == 1 ? c : 1;
  if (m.row > 0 && m.column > 0 && lies_as_matrix(r, c, m.row, m.column)) return m;
  m.strides = packed_strides(args, batch, rows, columns);
  m.data = args.workspace == nullptr ? nullptr : static_cast<std::byte*>(args.workspace) + used;
  used += aligned_workspace(t.numel() * size_of(t.dtype));
  m.row = c, m.column = c == 1 ? r : 1;  // a single column is one of columns, too
  m.copied = true;
  return m;
}

// The operands of a product of the first two, and of one that is added to it.
struct ProductOperands {
  Matrices a, b, c, residual;
  int64_t workspace = kProductWorkspace;  // bytes
};
// `residual`: the operand's index; -1: there is none.
inline ProductOperands product_operands(const KernelArgs& args, const Classes& of, int residual) {
  ProductOperands p;
  const auto in = [&](int i, std::span<const int8_t> rows, std::span<const int8_t> columns) {
    const auto operand = static_cast<size_t>(i);
    return as_matrices(args, args.in[operand], in_strides(args, operand), of.batch, rows, columns,
                       p.workspace);
  };
  p.a = in(0, of.m, of.k);
  p.b = in(1, of.k, of.n);
  p.c = as_matrices(args, args.out[0], out_strides(args, 0), of.batch, of.m, of.n, p.workspace);
  if (residual >= 0) p.residual = in(residual, of.m, of.n);
  return p;
}

// Of a call whose operands' places are known; else nothing is taken to be copied.
inline int64_t product_workspace(const OpCall& call, int residual) {
  if (call.placed.empty()) return kProductWorkspace;
  std::vector<Extent> extents;
  for (const int64_t n : call.extents) extents.push_back({n, n, {}});
  const KernelArgs args = {.signature = call.signature,
                           .attrs = call.attrs,
                           .in = call.placed.first(call.in.size()),
                           .out = call.placed.subspan(call.in.size()),
                           .extents = extents};
  return product_operands(args, classify(call.signature), residual).workspace;
}

// Which operand of a product with attributes `bias` and `residual` is the residual.
inline int residual_operand(const Attrs& attrs) {
  if (attrs.integer_or("residual", 0) == 0) return -1;
  return attrs.integer_or("bias", 0) != 0 ? 3 : 2;
}

inline int64_t matmul_cuda_workspace(const OpCall& call) { return product_workspace(call, -1); }
// Copies of operands of 8 bits lie beside the arena.
inline int64_t scaled_matmul_cuda_workspace(const OpCall&) { return kProductWorkspace; }
inline int64_t linear_cuda_workspace(const OpCall& call) {
  return product_workspace(call, residual_operand(call.attrs));
}

}  // namespace cleave
