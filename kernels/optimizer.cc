// What comes before a training step's update: the gradients' norm, whether the step is sound, and
// the learning rate. The formulas are those of torch.nn.utils.clip_grad_norm_.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <span>

#include "kernels/cuda/workspace.h"
#include "kernels/cuda_kernel.h"
#include "kernels/lanes.h"
#include "kernels/op_parts.h"
#include "kernels/ops.h"
#include "kernels/parallel.h"
#include "kernels/rows.h"

namespace cleave {

// kernels/cuda/optimizer_squares.cu
void sum_squares_cuda(const KernelArgs&);
void sum_squares_cuda_many(std::span<const KernelArgs>);
// kernels/cuda/optimizer.cu
void clip_coefficient_cuda(const KernelArgs&);
void increment_cuda(const KernelArgs&);
void count_update_cuda(const KernelArgs&);
void learning_rate_cuda(const KernelArgs&);

namespace {

// The clipping coefficient of a step whose update is not made.
constexpr double kSkipped = -1;

// --- Scalars -------------------------------------------------------------------------------------

template <class T>
double squares(const T* x, int64_t stride, int64_t n) {
  double sum = 0;
  const auto square = [](T x) { return static_cast<double>(x) * static_cast<double>(x); };
  widest([&] {
    sum = stride == 1 ? lane_sum<double>(n, [=](int64_t i) { return square(x[i]); })
                      : lane_sum<double>(n, [=](int64_t i) { return square(x[i * stride]); });
  });
  return sum;
}

// Of halves in f32, whose squares may be too large for them; else of the operand's type, or as the
// attribute `dtype` says.
std::vector<TensorType> infer_sum_squares(const OpCall& call) {
  const DType x = call.in[0].dtype;
  if (!is_float(x)) fail("sum_squares: {} is no float", to_string(call.in[0]));
  const DType sum = call.attrs.has("dtype") ? dtype_named(call.attrs.text("dtype"))
                    : is_half(x)            ? DType::kF32
                                            : x;
  if (!is_float(sum)) fail("sum_squares: a sum in {}", name_of(sum));
  return {output_type(call, 0, sum)};
}

void sum_squares_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const auto nest =
        nest_over<1>(args, factors_of(args.signature.inputs()[0]), {in_strides(args, 0)});
    const int64_t inner = std::max<int64_t>(nest.inner(), 1), stride = nest.inner_steps()[0];
    const int64_t cuts = (inner + kPieceElements - 1) / kPieceElements;
    std::vector<double> parts(static_cast<size_t>(nest.count() / inner * cuts));
    parallel_for(args, static_cast<int64_t>(parts.size()), rows_a_piece(inner / cuts),
                 [&](int64_t begin, int64_t end, int) {
                   for (int64_t part = begin; part < end; ++part) {
                     const int64_t first = part % cuts * kPieceElements;
                     const T* x = args.in[0].as<const T>() + nest.offsets_of_row(part / cuts)[0] +
                                  first * stride;
                     const int64_t n = std::min(kPieceElements, inner - first);
                     parts[static_cast<size_t>(part)] = squares(x, stride, n);
                   }
                 });
    const double sum = std::accumulate(parts.begin(), parts.end(), 0.0);
    with_float(args.out[0].dtype,
               [&]<class S>(S) { args.out[0].as<S>()[0] = static_cast<S>(sum); });
  });
}

// Operands: the sum of the gradients' squares, the loss and, both or none, the largest loss and the
// largest norm with which the step is still taken.
std::vector<TensorType> infer_clip_coefficient(const OpCall& call) {
  if (call.in.size() != 2 && call.in.size() != 4) {
    fail("clip_coefficient: a sum of squares, a loss, and two limits or none; got {} operands",
         call.in.size());
  }
  for (const TensorType& type : call.in) {
    if (!is_float(type.dtype)) fail("clip_coefficient: {} is no float", to_string(type));
  }
  return infer_from_factors(call);
}

double scalar_of(const TensorView& view) {
  double value = 0;
  with_float(view.dtype, [&]<class T>(T) { value = static_cast<double>(view.as<const T>()[0]); });
  return value;
}

// Whether the update may be made: nothing has overflowed, and nothing is above its limit. False
// for NaN.
bool step_is_sound(const KernelArgs& args, double norm) {
  const double loss = scalar_of(args.in[1]);
  if (!std::isfinite(norm) || !std::isfinite(loss)) return false;
  return args.in.size() == 2 || (loss <= scalar_of(args.in[2]) && norm <= scalar_of(args.in[3]));
}

// The norm, and what to multiply the gradients by so that it is at most max_norm; kSkipped when the
// update must not be made.
void clip_coefficient_cpu(const KernelArgs& args) {
  with_float(args.in[0].dtype, [&]<class T>(T) {
    const T max_norm = static_cast<T>(args.attrs.real("max_norm"));
    const T norm = std::sqrt(args.in[0].as<const T>()[0]);
    args.out[0].as<T>()[0] = norm;
    const T coefficient = max_norm / (norm + static_cast<T>(1e-6));
    args.out[1].as<T>()[0] = !step_is_sound(args, static_cast<double>(norm))
                                 ? static_cast<T>(kSkipped)
                             : max_norm == 0 || coefficient > 1 ? T{1}
                                                                : coefficient;
  });
}

// One operand, the count. "->" is also how an op without operands is written.
void expect_count(const OpCall& call, size_t operands) {
  if (call.in.size() != operands) fail("the step is missing");
  if (call.in[0].dtype != DType::kI32) {
    fail("the step must be an i32, got {}", to_string(call.in[0]));
  }
}

std::vector<TensorType> infer_increment(const OpCall& call) {
  expect_count(call, 1);
  return {call.in[0]};
}

void increment_cpu(const KernelArgs& args) {
  args.out[0].as<int32_t>()[0] = args.in[0].as<const int32_t>()[0] + 1;
}

// Operands: the updates made so far, and the clipping coefficient.
std::vector<TensorType> infer_count_update(const OpCall& call) {
  expect_count(call, 2);
  if (!is_float(call.in[1].dtype)) fail("the coefficient {} is no float", to_string(call.in[1]));
  return {call.in[0]};
}

void count_update_cpu(const KernelArgs& args) {
  const int32_t count = args.in[0].as<const int32_t>()[0];
  args.out[0].as<int32_t>()[0] = scalar_of(args.in[1]) < 0 ? count : count + 1;
}

std::vector<TensorType> infer_learning_rate(const OpCall& call) {
  expect_count(call, 1);
  const std::string& kind = call.attrs.text("kind");
  if (kind != "constant" && kind != "cosine") {
    fail("learning_rate: unknown kind '{}' (one of constant, cosine)", kind);
  }
  return {output_type(call, 0, dtype_named(call.attrs.text("dtype")))};
}

// At step 1, 2, ...: base * step / warmup while warming up; then base, or half a cosine from base
// down to min at step `total`, and min from there on.
double learning_rate_at(const Attrs& attrs, int64_t step) {
  const double base = attrs.real("base");
  const int64_t warmup = attrs.integer_or("warmup", 0);
  if (step < warmup) return base * static_cast<double>(step) / static_cast<double>(warmup);
  if (attrs.text("kind") == "constant") return base;
  const double min = attrs.real("min");
  const int64_t total = attrs.integer("total");
  if (step >= total) return min;
  const double progress = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
  return min + 0.5 * (base - min) * (1 + std::cos(std::numbers::pi * progress));
}

void learning_rate_cpu(const KernelArgs& args) {
  with_float(args.out[0].dtype, [&]<class T>(T) {
    args.out[0].as<T>()[0] =
        static_cast<T>(learning_rate_at(args.attrs, args.in[0].as<const int32_t>()[0]));
  });
}

}  // namespace

constinit const OpDef ops::sum_squares = {
    .name = "sum_squares",
    .factors = "ab->",  // callers give the parameter's own dimensions
    .infer = infer_sum_squares,
    .cpu = sum_squares_cpu,
    .cuda = cuda_kernel<sum_squares_cuda>(),
    .cuda_workspace = sum_squares_workspace,
    .cuda_many = cuda_kernels<sum_squares_cuda_many>(),
};

constinit const OpDef ops::clip_coefficient = {
    .name = "clip_coefficient",
    .factors = ",->,",
    .infer = infer_clip_coefficient,
    .cpu = clip_coefficient_cpu,
    .cuda = cuda_kernel<clip_coefficient_cuda>(),
};

constinit const OpDef ops::increment = {
    .name = "increment",
    .factors = "->",
    .infer = infer_increment,
    .cpu = increment_cpu,
    .cuda = cuda_kernel<increment_cuda>(),
};

constinit const OpDef ops::count_update = {
    .name = "count_update",
    .factors = ",->",
    .infer = infer_count_update,
    .cpu = count_update_cpu,
    .cuda = cuda_kernel<count_update_cuda>(),
};

constinit const OpDef ops::learning_rate = {
    .name = "learning_rate",
    .factors = "->",
    .infer = infer_learning_rate,
    .cpu = learning_rate_cpu,
    .cuda = cuda_kernel<learning_rate_cuda>(),
};

}  // namespace cleave
