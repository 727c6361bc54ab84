// The scalars that a training step ends with, on the device: nothing here is read by the host. An
// update whose clipping coefficient is negative is not made.
#include <string>

#include "kernels/cuda/check.h"
#include "kernels/cuda/loops.cuh"

namespace cleave {
namespace {

// The loss is judged by two limits, or by none.
struct Judged {
  AnyFloat squares, loss, loss_limit, norm_limit;
  bool limits = false;
};

template <class S>
__global__ void coefficient(Judged judged, S max_norm, AnyFloat norm_out, AnyFloat out) {
  const S norm = sqrt_of(get<S>(judged.squares, 0));
  const S loss = get<S>(judged.loss, 0);
  bool sound = isfinite(norm) && isfinite(loss);
  if (judged.limits) {
    sound = sound && loss <= get<S>(judged.loss_limit, 0) && norm <= get<S>(judged.norm_limit, 0);
  }
  set(norm_out, 0, norm);
  const S clip = max_norm / (norm + static_cast<S>(1e-6));
  set(out, 0, !sound ? S{-1} : max_norm == 0 || clip > 1 ? S{1} : clip);
}

__global__ void count_up(const int* from, int* to) { *to = *from + 1; }

__global__ void count_if_made(const int* from, AnyFloat coefficient, int* to) {
  *to = *from + (get<double>(coefficient, 0) < 0 ? 0 : 1);
}

struct Schedule {
  double base = 0, min = 0;
  int64_t warmup = 0, total = 0;
  bool cosine = false;
};

__global__ void rate(Schedule s, const int* step_of, AnyFloat out) {
  const int64_t step = *step_of;
  double lr = s.base;
  if (step < s.warmup) {
    lr = s.base * static_cast<double>(step) / static_cast<double>(s.warmup);
  } else if (s.cosine && step >= s.total) {
    lr = s.min;
  } else if (s.cosine) {
    const double progress =
        static_cast<double>(step - s.warmup) / static_cast<double>(s.total - s.warmup);
    lr = s.min + 0.5 * (s.base - s.min) * (1 + cospi(progress));
  }
  set(out, 0, lr);
}

cudaStream_t stream_of(const KernelArgs& args) { return static_cast<cudaStream_t>(args.stream); }

}  // namespace

void clip_coefficient_cuda(const KernelArgs& args) {
  Judged judged{any_float(args.in[0]), any_float(args.in[1]), {}, {}, args.in.size() == 4};
  if (judged.limits) {
    judged.loss_limit = any_float(args.in[2]), judged.norm_limit = any_float(args.in[3]);
  }
  with_sum_type(args.in[0].dtype, [&]<class S>(S) {
    coefficient<S><<<1, 1, 0, stream_of(args)>>>(judged,
                                                 static_cast<S>(args.attrs.real("max_norm")),
                                                 any_float(args.out[0]), any_float(args.out[1]));
  });
  cuda_check(cudaGetLastError());
}

void increment_cuda(const KernelArgs& args) {
  count_up<<<1, 1, 0, stream_of(args)>>>(args.in[0].as<const int>(), args.out[0].as<int>());
  cuda_check(cudaGetLastError());
}

void count_update_cuda(const KernelArgs& args) {
  count_if_made<<<1, 1, 0, stream_of(args)>>>(args.in[0].as<const int>(), any_float(args.in[1]),
                                              args.out[0].as<int>());
  cuda_check(cudaGetLastError());
}

void learning_rate_cuda(const KernelArgs& args) {
  Schedule s;
  s.base = args.attrs.real("base");
  s.warmup = args.attrs.integer_or("warmup", 0);
  s.cosine = args.attrs.text("kind") == "cosine";
  if (s.cosine) s.min = args.attrs.real("min"), s.total = args.attrs.integer("total");
  rate<<<1, 1, 0, stream_of(args)>>>(s, args.in[0].as<const int>(), any_float(args.out[0]));
  cuda_check(cudaGetLastError());
}

}  // namespace cleave
