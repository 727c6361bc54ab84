// Attention alone on this machine's GPU: our own kernels on tensor cores beside cuDNN's, which give
// the same bits every time, and cuDNN's whose sums come in any order. Queries, keys and values lie
// in one tensor, as models have them; random bf16 numbers.
#include <fmt/format.h>

#include "kernels/ops.h"

#ifdef CLEAVE_CUDA

#include <cuda_runtime_api.h>

#include <cmath>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "benchmarks/launch_times.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/random_fill.h"

namespace cleave {
namespace {

struct Case {
  const char* name;
  int64_t b, s, g, r, d;  // batch, sequence, key heads, query heads of each, width
};

constexpr Case kCases[] = {
    {"gpt2:124m", 32, 1024, 12, 1, 64},    {"gpt2:355m", 16, 1024, 16, 1, 64},
    {"megatron:1.2b", 8, 1024, 16, 1, 96}, {"llama:1b", 4, 2048, 8, 4, 64},
    {"llama 7b", 4, 2048, 32, 1, 128},     {"qwen2.5 1.5b", 8, 1024, 2, 6, 128},
};

class Call {
 public:
  Call(const Case& c, bool backward) : backward_(backward), flops_(2 * 2 * 0.5) {
    const int64_t h = c.g * c.r, row = (h + 2 * c.g) * c.d;
    flops_ *= static_cast<double>(c.b * h * c.s * c.s * c.d) * (backward ? 2.5 : 1);
    const Shape q = {c.b, c.s, h, c.d}, k = {c.b, c.s, c.g, c.d}, lse = {c.b, c.s, h};
    const Shape wide_row = {c.s * row, row, c.d, 1};
    const auto wide = [&](void* data, const Shape& shape, int64_t offset) {
      return TensorView{static_cast<uint16_t*>(data) + offset, DType::kBF16, shape, wide_row};
    };
    const auto dense = [&](DType dtype, const Shape& shape) {
      return TensorView{memory(numel(shape) * size_of(dtype), dtype), dtype, shape,
                        contiguous_strides(shape)};
    };
    void* const x = memory(c.b * c.s * row * 2, DType::kBF16);
    const std::vector<TensorView> qkv = {wide(x, q, 0), wide(x, k, h * c.d),
                                         wide(x, k, (h + c.g) * c.d)};
    const TensorView o = dense(DType::kBF16, q), l = dense(DType::kF32, lse);
    attrs_ = {
        {"causal", int64_t{1}}, {"scale", 1 / std::sqrt(static_cast<double>(c.d))}, {"r", c.r}};
    if (!backward) {
      signature_ = &Signature::get("bs(gr)E,btgE,btgV->bs(gr)V,bs(gr)|s:indexed,t:indexed");
      in_ = qkv, out_ = {o, l};
    } else {
      signature_ = &Signature::get(
          "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)->bs(gr)E,btgE,btgV|s:indexed,t:indexed");
      void* const dx = memory(c.b * c.s * row * 2, DType::kBF16);
      in_ = {dense(DType::kBF16, q), qkv[0], qkv[1], qkv[2], o, l};
      out_ = {wide(dx, q, 0), wide(dx, k, h * c.d), wide(dx, k, (h + c.g) * c.d)};
    }
    for (const Factor& f : signature_->factors()) {
      const int64_t size = f.letter == 'b'                      ? c.b
                           : f.letter == 'g'                    ? c.g
                           : f.letter == 'r'                    ? c.r
                           : f.letter == 's' || f.letter == 't' ? c.s
                                                                : c.d;
      extents_.push_back({size, size, {}});
    }
    workspace_ = memory(4 * numel(lse) * 4, DType::kF32);
  }
  ~Call() {
    for (void* data : memory_) cudaFree(data);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void launch(DeviceContext& device, cudaStream_t stream) const {
    (backward_ ? ops::attention_backward : ops::attention)
        .cuda({.signature = *signature_,
               .attrs = attrs_,
               .in = in_,
               .out = out_,
               .extents = extents_,
               .workspace = workspace_,
               .device = &device,
               .stream = stream});
  }
  double flops() const { return flops_; }  // those of half the scores

 private:
  void* memory(int64_t bytes, DType dtype) {
    void* data = nullptr;
    cuda_check(cudaMalloc(&data, static_cast<size_t>(bytes)));
    memory_.push_back(data);
    fill_random(data, dtype, bytes / size_of(dtype), memory_.size(), nullptr);
    return data;
  }

  const bool backward_;
  double flops_;
  const Signature* signature_ = nullptr;
  Attrs attrs_;
  std::vector<TensorView> in_, out_;
  std::vector<Extent> extents_;
  std::vector<void*> memory_;
  void* workspace_ = nullptr;
};

int run(int argc, char** argv) {
  CLI::App app("Attention in bf16, our kernels beside cuDNN's");
  read_arguments(app, argc, argv);
  DeviceContext device(0);
  cudaStream_t stream = nullptr;
  cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  fmt::print("{}, bf16, causal; ms (TFLOP/s, of half the scores)\n\n", device.properties().name);
  fmt::print("{:<14}{:<10}{:>20}{:>20}{:>20}{:>8}\n", "shape", "", "ours", "cuDNN", "any order",
             "ratio");
  for (const Case& c : kCases) {
    for (const bool backward : {false, true}) {
      const Call call(c, backward);
      double ms[3] = {};
      std::string row = fmt::format("{:<14}{:<10}", c.name, backward ? "backward" : "forward");
      for (int which = 0; which < 3; ++which) {
        if (which == 2 && !backward) {
          row += fmt::format("{:>20}", "");
          continue;
        }
        device.tensor_core_attention = which == 0;
        device.cudnn_attention = which != 0;
        device.deterministic_attention = which != 2;
        ms[which] = median_ms([&] { call.launch(device, stream); }, stream);
        row += fmt::format(
            "{:>20}", fmt::format("{:.3f} ({:.0f})", ms[which], call.flops() / ms[which] * 1e-9));
      }
      fmt::print("{}{:>8.2f}\n", row, ms[1] / ms[0]);
    }
  }
  cudaStreamDestroy(stream);
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }

#else

int main() {
  fmt::print(stderr, "gpu_attention: built without CUDA\n");
  return 1;
}

#endif
