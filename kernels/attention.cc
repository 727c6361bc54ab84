// Attention, forward: softmax(scale q k^T) v, a block of queries at a time, with the log-sum-exp of
// the scores kept for the backward. Split along the keys, each shard attends to its own block, and
// the blocks merge by their log-sum-exps.
#include "kernels/attention.h"

#include <cmath>
#include <limits>

#include "kernels/cuda/attention_room.h"
#include "kernels/cuda_kernel.h"
#include "kernels/lanes.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"

namespace cleave {

void attention_cuda(const KernelArgs&);  // kernels/cuda/attention.cc

// --- Shared with the backward --------------------------------------------------------------------

AttentionFactors::AttentionFactors(const OperandDims& q, const OperandDims& v_dims,
                                   const OperandDims& o) {
  CLEAVE_ASSERT(q.size() >= 3 && v_dims.size() >= 3,
                "attention's operands end in heads and widths");
  for (size_t d = 0; d + 3 < q.size(); ++d) batch.insert(batch.end(), q[d].begin(), q[d].end());
  const DimFactors& heads = q[q.size() - 2];
  s = q[q.size() - 3].back();
  g = heads[0];
  if (heads.size() == 2) r = heads[1];
  e = q.back()[0];
  v = v_dims.back()[0];
  key_dim = v_dims[v_dims.size() - 3];
  t = key_dim.back();
  for (const int8_t f : factors_of(o)) {
    if (f != s && f != g && f != r && f != v) outer.push_back(f);
  }
}

AttentionCall::AttentionCall(const KernelArgs& kernel_args, AttentionFactors roles)
    : args(kernel_args),
      factors(std::move(roles)),
      s(local(factors.s)),
      t(local(factors.t)),
      g(local(factors.g)),
      r(local(factors.r)),
      e(local(factors.e)),
      v(local(factors.v)),
      block(attention_block(s, t)),
      causal(args.attrs.integer_or("causal", 0) != 0),
      scale(args.attrs.real("scale")),
      query_positions(args.extents[static_cast<size_t>(factors.s)].positions()) {}

std::vector<int64_t> AttentionCall::key_positions(const std::vector<int64_t>& index) const {
  int64_t block_position = 0;
  for (size_t i = 0; i + 1 < factors.key_dim.size(); ++i) {
    const int8_t f = factors.key_dim[i];
    const auto at = std::find(factors.outer.begin(), factors.outer.end(), f);
    CLEAVE_ASSERT(at != factors.outer.end(), "the outputs lack a block of keys");
    const Extent& extent = args.extents[static_cast<size_t>(f)];
    block_position = block_position * extent.global +
                     extent.position(index[static_cast<size_t>(at - factors.outer.begin())]);
  }
  const Extent& keys = args.extents[static_cast<size_t>(factors.t)];
  std::vector<int64_t> positions = keys.positions();
  for (int64_t& p : positions) p += block_position * keys.global;
  return positions;
}

int64_t AttentionCall::offset(const Shape& strides, const std::vector<int64_t>& index,
                              int64_t key_head, int64_t query_head) const {
  int64_t at = key_head * strides[static_cast<size_t>(factors.g)];
  if (factors.r >= 0) at += query_head * strides[static_cast<size_t>(factors.r)];
  for (size_t i = 0; i < index.size(); ++i) {
    at += index[i] * strides[static_cast<size_t>(factors.outer[i])];
  }
  return at;
}

AttentionDropout::AttentionDropout(const AttentionCall& call, size_t step)
    : call_(call),
      active_(call.args.attrs.real_or("dropout", 0) > 0),
      mask_(call.args.seed, active_ ? call.args.attrs.text("name") : std::string(),
            active_ ? call.args.in[step].as<const int32_t>()[0] : 0,
            call.args.attrs.real_or("dropout", 0)) {}

uint64_t AttentionDropout::row(const std::vector<int64_t>& index, int64_t key_head,
                               int64_t query_head, int64_t query) const {
  int64_t at = 0;
  const auto append = [&](int8_t factor, int64_t i) {
    const Extent& extent = call_.args.extents[static_cast<size_t>(factor)];
    at = at * extent.global + extent.position(i);
  };
  const AttentionFactors& f = call_.factors;
  for (const int8_t b : f.batch) {
    const auto i = std::find(f.outer.begin(), f.outer.end(), b) - f.outer.begin();
    append(b, index[static_cast<size_t>(i)]);
  }
  append(f.g, key_head);
  if (f.r >= 0) append(f.r, query_head);
  append(f.s, query);
  for (const int8_t k : f.key_dim) at *= call_.args.extents[static_cast<size_t>(k)].global;
  return static_cast<uint64_t>(at);
}

void expect_attention(const OpCall& call, std::string_view kinds) {
  const double rate = call.attrs.real_or("dropout", 0);
  if (!(rate >= 0 && rate < 1)) {
    fail("attention: the dropout rate must be in [0, 1), got {}", rate);
  }
  expect_types(call, rate > 0 ? std::string(kinds) + "i" : std::string(kinds));
  if (rate == 0) return;
  const Signature& s = call.signature;
  const size_t q = kinds.size() == 3 ? 0 : 1;
  for (const OperandDims* dims : {&s.inputs()[q], &s.inputs()[q + 1]}) {
    for (const int8_t f : factors_of(*dims)) {
      const Factor& factor = s.factors()[static_cast<size_t>(f)];
      CLEAVE_ASSERT(factor.indexed || f == (*dims).back()[0],
                    "attention with dropout: factor {} of '{}' must be indexed", factor.letter,
                    s.text());
    }
  }
}

double attention_products(const OpCall& call, const AttentionFactors& f, int over_e, int over_v) {
  const auto size = [&](int8_t factor) {
    return static_cast<double>(call.extents[static_cast<size_t>(factor)]);
  };
  double scores = 1;
  for (size_t i = 0; i < call.extents.size(); ++i) {
    const int8_t factor = static_cast<int8_t>(i);
    if (factor != f.e && factor != f.v && call.signature.in_inputs(factor)) scores *= size(factor);
  }
  const double flops = 2 * scores * (over_e * size(f.e) + over_v * size(f.v));
  return call.attrs.integer_or("causal", 0) != 0 ? flops / 2 : flops;
}

namespace {

// --- Forward -------------------------------------------------------------------------------------

AttentionFactors forward_factors(const Signature& s) {
  return {s.inputs()[0], s.inputs()[2], s.outputs()[0]};
}

std::vector<TensorType> infer_attention(const OpCall& call) {
  expect_attention(call, "xxx");
  const DType x = call.in[0].dtype;
  return {output_type(call, 0, x), output_type(call, 1, statistics_dtype(x))};
}

double attention_flops(const OpCall& call) {
  return attention_products(call, forward_factors(call.signature), 1, 1);
}

// The scores of a block, and room for operands that BLAS cannot take as they lie. In elements.
int64_t forward_room(int64_t s, int64_t t, int64_t e, int64_t v) {
  const int64_t block = attention_block(s, t);
  const auto padded = Scratch<float>::padded;
  return padded(block * t) + padded(t) + padded(t * e) + padded(t * v) + padded(block * e) +
         padded(block * v) + padded(block);
}

int64_t attention_workspace(const OpCall& call) {
  const AttentionFactors f = forward_factors(call.signature);
  const auto size = [&](int8_t factor) { return call.extents[static_cast<size_t>(factor)]; };
  return forward_room(size(f.s), size(f.t), size(f.e), size(f.v)) * size_of(call.in[0].dtype);
}

template <class T>
void attend(const KernelArgs& args) {
  const AttentionCall call(args, forward_factors(args.signature));
  const int64_t s = call.s, t = call.t, e = call.e, v = call.v, block = call.block;
  const AttentionFactors& f = call.factors;
  const AttentionDropout dropout(call, 3);
  const Shape q_strides = in_strides(args, 0), k_strides = in_strides(args, 1),
              v_strides = in_strides(args, 2), o_strides = out_strides(args, 0),
              lse_strides = out_strides(args, 1);
  const auto stride = [](const Shape& strides, int8_t factor) {
    return strides[static_cast<size_t>(factor)];
  };
  const int64_t room = forward_room(s, t, e, v) * static_cast<int64_t>(sizeof(T));
  const auto attend_head = [&](const std::vector<int64_t>& index, int64_t head, int member) {
    Scratch<T> scratch(workspace_of<T>(args, member, room));
    T* const scores = scratch.take(block * t);
    T* const keep = scratch.take(t);
    T* const k_room = scratch.take(t * e);
    T* const v_room = scratch.take(t * v);
    T* const q_room = scratch.take(block * e);
    T* const o_room = scratch.take(block * v);
    T* const inverse = scratch.take(block);  // one over the sum of a query's weights
    const std::vector<int64_t> keys = call.key_positions(index);
    const int64_t g = head / call.r, r = head % call.r;
    const T* k_data = args.in[1].as<const T>() + call.offset(k_strides, index, g, r);
    const T* v_data = args.in[2].as<const T>() + call.offset(v_strides, index, g, r);
    const Matrix<const T> k = blas_input<T>(
        t, e, {k_data, stride(k_strides, f.t), stride(k_strides, f.e)}, k_room);  // [t, e]
    const Matrix<const T> values = blas_input<T>(
        t, v, {v_data, stride(v_strides, f.t), stride(v_strides, f.v)}, v_room);  // [t, v]
    const T* q_head = args.in[0].as<const T>() + call.offset(q_strides, index, g, r);
    T* o_head = args.out[0].as<T>() + call.offset(o_strides, index, g, r);
    T* lse_head = args.out[1].as<T>() + call.offset(lse_strides, index, g, r);

    for (int64_t first = 0; first < s; first += block) {
      const int64_t rows = std::min(block, s - first);
      // Positions ascend: the last query of the block sees the most keys.
      const int64_t n = call.visible(first + rows - 1, keys);
      const Matrix<T> o = {o_head + first * stride(o_strides, f.s), stride(o_strides, f.s),
                           stride(o_strides, f.v)};
      if (n > 0) {
        const Matrix<const T> q = blas_input<T>(rows, e,
                                                {q_head + first * stride(q_strides, f.s),
                                                 stride(q_strides, f.s), stride(q_strides, f.e)},
                                                q_room);
        gemm(rows, n, e, static_cast<T>(call.scale), q, {k.data, k.column, k.row}, T{0},
             {scores, t, 1});
      }
      widest([&] {
        for (int64_t i = 0; i < rows; ++i) {
          T* row = scores + i * t;
          const int64_t seen = std::min(n, call.visible(first + i, keys));
          T& lse = lse_head[(first + i) * stride(lse_strides, f.s)];
          inverse[i] = 0;
          lse = -std::numeric_limits<T>::infinity();
          if (seen > 0) {
            const T top = lane_max(row, seen);
            const T sum = exp_and_sum(row, top, row, seen);
            inverse[i] = 1 / sum;
            lse = top + std::log(sum);
          }
          if (dropout.active()) {
            dropout.fill(index, g, r, first + i, keys, seen, keep);
            for (int64_t j = 0; j < seen; ++j) row[j] *= keep[j];
          }
          std::fill(row + seen, row + n, T{0});
        }
      });
      const Matrix<T> product = blas_output(rows, v, o, o_room);
      if (n > 0) {
        gemm(rows, v, n, T{1}, Matrix<const T>{scores, t, 1}, values, T{0}, product);
      }
      widest([&] {
        for (int64_t i = 0; i < rows; ++i) {
          T* __restrict row = product.data + i * product.row;
          const int64_t step = product.column;
          const T factor = inverse[i];
          // Not a product with 0: without any key, the memory holds no numbers yet.
          if (n == 0) {
            for (int64_t j = 0; j < v; ++j) row[j * step] = 0;
          } else if (step == 1) {
            for (int64_t j = 0; j < v; ++j) row[j] *= factor;
          } else {
            for (int64_t j = 0; j < v; ++j) row[j * step] *= factor;
          }
        }
      });
      deliver(rows, v, product, o);
    }
  };
  for_each_head(call, call.g * call.r, attend_head);
}

void attention_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) { attend<T>(args); });
}

std::vector<Value> attention_grad(GradContext& g) {
  const Signature& s = g.signature();
  CLEAVE_ASSERT(g.grad(1) == kNoValue, "attention: the log-sum-exp has no gradient");
  const AttentionFactors f = forward_factors(s);
  CLEAVE_ASSERT(f.key_dim.size() == 1, "attention by blocks of keys has no gradient");
  const char whole = s.factors()[static_cast<size_t>(f.t)].letter;
  const std::string q = s.input_text(0), k = s.input_text(1), v = s.input_text(2),
                    o = s.output_text(0), lse = s.output_text(1);
  const bool dropout = s.inputs().size() == 4;
  std::string text = fmt::format("{0},{1},{2},{3},{0},{4}{5}->{1},{2},{3}{6}", o, q, k, v, lse,
                                 dropout ? "," : "", indexed_notes(s));
  std::vector<Value> inputs = {g.grad(0), g.in(0), g.in(1), g.in(2), g.out(0), g.out(1)};
  if (dropout) inputs.push_back(g.in(3));
  // The backward can be split along the keys: dq is then a sum.
  std::vector<Value> grads = g.add(ops::attention_backward, std::move(inputs),
                                   with_letter(std::move(text), whole, lower(whole)), g.attrs());
  if (dropout) grads.push_back(kNoValue);
  return grads;
}

std::vector<Value> attention_split(const SplitRequest& request) {
  const Signature& s = request.call.signature;
  const AttentionFactors f = forward_factors(s);
  const char whole = request.letter;
  if (f.key_dim.size() != 1 || s.factors()[static_cast<size_t>(f.t)].letter != whole ||
      request.call.extent(whole) % request.shards != 0) {
    return {};
  }
  const Decomposition d(request);
  const char t = d.letter()[0];
  // The keys' dimension T becomes (tT): t blocks of keys. The results gain the dimension t before
  // s.
  const auto blocked = [&](const std::string& text) {
    const size_t at = text.find(whole);
    return text.substr(0, at) + '(' + t + whole + ')' + text.substr(at + 1);
  };
  const auto with_blocks = [&](std::string text) {
    const char queries = s.factors()[static_cast<size_t>(f.s)].letter;
    return text.insert(text.find(queries), 1, t);
  };
  const std::string o = s.output_text(0), lse = s.output_text(1);
  const std::string blocks_o = with_blocks(o), blocks_lse = with_blocks(lse);
  Attrs attrs = request.call.attrs;
  attrs.set(d.letter(), request.shards);
  const std::vector<Value> parts = request.graph.add(
      ops::attention, {request.inputs.begin(), request.inputs.end()},
      fmt::format("{},{},{}{}->{},{}{}", s.input_text(0), blocked(s.input_text(1)),
                  blocked(s.input_text(2)), s.inputs().size() == 4 ? "," : "", blocks_o, blocks_lse,
                  indexed_notes(s, t)),
      std::move(attrs));
  const Value merged =
      d.add(ops::logsumexp, {parts[1]}, blocks_lse + "->" + lse + "|" + t + ":lse");
  const Value share =
      d.map(ops::exp, d.zip(ops::sub, parts[1], blocks_lse, merged, lse), blocks_lse);
  return d.finish(
      {d.sum(d.zip(ops::mul, parts[0], blocks_o, share, blocks_lse), blocks_o, o), merged},
      infer_attention);
}

}  // namespace

constinit const OpDef ops::attention = {
    .name = "attention",
    .factors = "bs(gr)E,bTgE,bTgV->bs(gr)V,bs(gr)|s:indexed,T:indexed",
    .infer = infer_attention,
    .flops = attention_flops,
    .grad = attention_grad,
    .split = attention_split,
    .merge = &ops::attention_merge,
    .merges = 'T',
    .workspace = attention_workspace,
    .fused_products = 2,
    .cpu = attention_cpu,
    .cuda = cuda_kernel<attention_cuda>(),
    .cuda_workspace = attention_cuda_workspace,
};

}  // namespace cleave
