// Attention, backward: the weights are recomputed from the scores and their log-sum-exp, a block of
// queries at a time. Keys can be split: dk and dv are the shard's own, dq is a partial sum.
//
// The sums of the attribute `sum` are the gradient of the bias of a layer that made queries, keys
// and values (executor/fuse_norms.cc); with bit 3 of `wide`, those of halves are in f32.
#include "kernels/attention.h"
#include "kernels/cuda/attention_room.h"
#include "kernels/cuda_kernel.h"
#include "kernels/lanes.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/run_part.h"

namespace cleave {

// kernels/cuda/attention.cc
void attention_backward_cuda(const KernelArgs&);

namespace {

enum Operand : size_t { kDo, kQ, kK, kV, kO, kLse, kStep };

AttentionFactors backward_factors(const Signature& s) {
  return {s.inputs()[kQ], s.inputs()[kV], s.inputs()[kO]};
}

std::vector<TensorType> infer_attention_backward(const OpCall& call) {
  expect_attention(call, "xxxxxs");
  const DType x = call.in[0].dtype;
  std::vector<TensorType> out = {output_type(call, 0, x), output_type(call, 1, x),
                                 output_type(call, 2, x)};
  if (call.attrs.integer_or("sum", 0) == 0) return out;
  const Signature& s = call.signature;
  const AttentionFactors f = backward_factors(s);
  const auto size = [&](int8_t factor) {
    return factor < 0 ? 1 : call.extents[static_cast<size_t>(factor)];
  };
  if (s.outputs().size() != 4 || s.outputs()[3].size() != 1 || size(f.r) != 1 ||
      size(f.e) != size(f.v) ||
      numel(shape_of(s.outputs()[3], call.extents)) != 3 * size(f.g) * size(f.e)) {
    fail("'{}' does not sum three tensors of one size over their rows", s.text());
  }
  out.push_back(output_type(call, 3, x));
  if ((call.attrs.integer_or("wide", 0) & 8) != 0) out[3].dtype = statistics_dtype(x);
  return out;
}

// Five products: the scores, dq and dk over E, the weights' gradient and dv over V.
double attention_backward_flops(const OpCall& call) {
  return attention_products(call, backward_factors(call.signature), 3, 2);
}

// Weights and their gradients of a block, and room for operands that BLAS cannot take as they lie.
// In elements.
int64_t backward_room(int64_t s, int64_t t, int64_t e, int64_t v) {
  const int64_t block = attention_block(s, t);
  const auto padded = Scratch<float>::padded;
  return 2 * padded(block * t) + padded(t) + 2 * padded(t * e) + 2 * padded(t * v) +
         2 * padded(block * e) + padded(block * v);
}

int64_t attention_backward_workspace(const OpCall& call) {
  const AttentionFactors f = backward_factors(call.signature);
  const auto size = [&](int8_t factor) { return call.extents[static_cast<size_t>(factor)]; };
  return backward_room(size(f.s), size(f.t), size(f.e), size(f.v)) * size_of(call.in[0].dtype);
}

// The strided dot product of n elements.
template <class T>
T dot(const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t n) {
  if (a_step == 1 && b_step == 1) {
    return lane_sum<T>(n, [=](int64_t i) { return a[i] * b[i]; });
  }
  return lane_sum<T>(n, [=](int64_t i) { return a[i * a_step] * b[i * b_step]; });
}

template <class T>
void clear(int64_t rows, int64_t columns, Matrix<T> m) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) m.data[i * m.row + j * m.column] = 0;
  }
}

template <class T>
void attend_backward(const KernelArgs& args) {
  const AttentionCall call(args, backward_factors(args.signature));
  const int64_t s = call.s, t = call.t, e = call.e, v = call.v, block = call.block;
  const AttentionFactors& f = call.factors;
  const AttentionDropout dropout(call, kStep);
  std::vector<Shape> in, out;
  for (size_t i = 0; i < kStep; ++i) in.push_back(in_strides(args, i));
  for (size_t i = 0; i < 3; ++i) out.push_back(out_strides(args, i));
  const T scale = static_cast<T>(call.scale);
  const int64_t room = backward_room(s, t, e, v) * static_cast<int64_t>(sizeof(T));
  // The matrix of an operand's rows along one factor and columns along another.
  const auto matrix = [](auto* data, const Shape& strides, int8_t rows, int8_t columns) {
    return Matrix<std::remove_pointer_t<decltype(data)>>{data, strides[static_cast<size_t>(rows)],
                                                         strides[static_cast<size_t>(columns)]};
  };
  const auto from_row = [](auto m, int64_t first) {
    m.data += first * m.row;
    return m;
  };

  const auto attend_head = [&](const std::vector<int64_t>& index, int64_t g, int member) {
    Scratch<T> scratch(workspace_of<T>(args, member, room));
    T* const weights = scratch.take(block * t);
    T* const dscores = scratch.take(block * t);
    T* const keep = scratch.take(t);
    T* const k_room = scratch.take(t * e);
    T* const dk_room = scratch.take(t * e);
    T* const v_room = scratch.take(t * v);
    T* const dv_room = scratch.take(t * v);
    T* const q_room = scratch.take(block * e);
    T* const dq_room = scratch.take(block * e);
    T* const do_room = scratch.take(block * v);
    const std::vector<int64_t> keys = call.key_positions(index);
    const auto input = [&](size_t i, int64_t r) {
      return args.in[i].as<const T>() + call.offset(in[i], index, g, r);
    };
    const auto output = [&](size_t i, int64_t r) {
      return args.out[i].as<T>() + call.offset(out[i], index, g, r);
    };
    const auto k = blas_input<T>(t, e, matrix(input(kK, 0), in[kK], f.t, f.e), k_room);
    const auto values = blas_input<T>(t, v, matrix(input(kV, 0), in[kV], f.t, f.v), v_room);
    const Matrix<T> dk_out = matrix(output(1, 0), out[1], f.t, f.e);
    const Matrix<T> dv_out = matrix(output(2, 0), out[2], f.t, f.v);
    const Matrix<T> dk = blas_output(t, e, dk_out, dk_room);
    const Matrix<T> dv = blas_output(t, v, dv_out, dv_room);
    clear(t, e, dk);
    clear(t, v, dv);
    for (int64_t r = 0; r < call.r; ++r) {
      for (int64_t first = 0; first < s; first += block) {
        const int64_t rows = std::min(block, s - first);
        const int64_t n = call.visible(first + rows - 1, keys);
        const Matrix<T> dq_out = from_row(matrix(output(0, r), out[0], f.s, f.e), first);
        if (n == 0) {
          clear(rows, e, dq_out);
          continue;
        }
        const auto q =
            blas_input<T>(rows, e, from_row(matrix(input(kQ, r), in[kQ], f.s, f.e), first), q_room);
        const auto dout = blas_input<T>(
            rows, v, from_row(matrix(input(kDo, r), in[kDo], f.s, f.v), first), do_room);
        const auto o = from_row(matrix(input(kO, r), in[kO], f.s, f.v), first);
        const T* lse = input(kLse, r);
        const int64_t lse_step = in[kLse][static_cast<size_t>(f.s)];
        gemm(rows, n, e, scale, q, {k.data, k.column, k.row}, T{0}, {weights, t, 1});
        gemm(rows, n, v, T{1}, dout, {values.data, values.column, values.row}, T{0},
             {dscores, t, 1});
        widest([&] {
          for (int64_t i = 0; i < rows; ++i) {
            const int64_t seen = std::min(n, call.visible(first + i, keys));
            const T row_lse = lse[(first + i) * lse_step];
            const T delta =
                dot(dout.data + i * dout.row, dout.column, o.data + i * o.row, o.column, v);
            T* __restrict w = weights + i * t;
            T* __restrict d = dscores + i * t;
            if (dropout.active()) {
              dropout.fill(index, g, r, first + i, keys, seen, keep);
              for (int64_t j = 0; j < seen; ++j) {
                const T weight = exp_of(w[j] - row_lse);
                d[j] = weight * (d[j] * keep[j] - delta) * scale;
                w[j] = weight * keep[j];
              }
            } else {
              for (int64_t j = 0; j < seen; ++j) {
                w[j] = exp_of(w[j] - row_lse);
                d[j] = w[j] * (d[j] - delta) * scale;
              }
            }
            std::fill(w + seen, w + n, T{0});
            std::fill(d + seen, d + n, T{0});
          }
        });
        gemm(n, v, rows, T{1}, Matrix<const T>{weights, 1, t}, dout, T{1}, dv);
        gemm(n, e, rows, T{1}, Matrix<const T>{dscores, 1, t}, q, T{1}, dk);
        const Matrix<T> dq = blas_output(rows, e, dq_out, dq_room);
        gemm(rows, e, n, T{1}, Matrix<const T>{dscores, t, 1}, k, T{0}, dq);
        deliver(rows, e, dq, dq_out);
      }
    }
    deliver(t, e, dk, dk_out);
    deliver(t, v, dv, dv_out);
  };
  for_each_head(call, call.g, attend_head);
}

void attention_backward_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) { attend_backward<T>(args); });
  if (args.out.size() == 3) return;
  sum_attention_results(args, backward_factors(args.signature));
}

}  // namespace

void sum_attention_results(const KernelArgs& args, const AttentionFactors& f) {
  for (size_t o = 0; o < 3; ++o) {
    std::string kept;
    TensorView to = args.out[3];
    to.shape = {1};
    for (const int8_t factor : {f.g, o == 0 ? f.r : int8_t{-1}, o < 2 ? f.e : f.v}) {
      if (factor < 0) continue;
      kept += args.signature.factors()[static_cast<size_t>(factor)].letter;
      to.shape[0] *= args.extents[static_cast<size_t>(factor)].local;
    }
    to.data = static_cast<char*>(to.data) +
              static_cast<int64_t>(o) * to.shape[0] * to.strides[0] * size_of(to.dtype);
    run_part(ops::sum, args.signature.output_text(o) + "->(" + kept + ")", args, {args.out[o]}, to);
  }
}

constinit const OpDef ops::attention_backward = {
    .name = "attention_backward",
    .factors = "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)->bs(gr)E,btgE,btgV|s:indexed,t:indexed",
    .infer = infer_attention_backward,
    .flops = attention_backward_flops,
    .merge = &ops::add,
    .merges = 't',
    .workspace = attention_backward_workspace,
    .fused_products = 5,
    .cpu = attention_backward_cpu,
    .cuda = cuda_kernel<attention_backward_cuda>(),
    .cuda_workspace = attention_backward_cuda_workspace,
};

}  // namespace cleave
