#include "executor/cuda/kernel_timer.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "executor/cuda/memory.h"
#include "executor/cuda/timed_graph.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/random_fill.h"

namespace cleave {
struct KernelTimer::Impl {
  explicit Impl(const Effort& e) : effort(e), context(0) {
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  ~Impl() { cudaStreamDestroy(stream); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  const Effort effort;
  DeviceContext context;
  cudaStream_t stream = nullptr;
};

KernelTimer::KernelTimer(double settle, double measure)
    : impl_(std::make_unique<Impl>(Effort{settle, measure})) {}
KernelTimer::~KernelTimer() = default;

GpuFacts KernelTimer::facts() const {
  const cudaDeviceProp& p = impl_->context.properties();
  return {p.name, static_cast<double>(p.totalGlobalMem), p.multiProcessorCount};
}

KernelTimer::Figure KernelTimer::time(const OpDef& op, std::string_view factors, const Attrs& attrs,
                                      const std::vector<TensorType>& in, bool tf32) {
  const Signature& signature = Signature::get(expand_factors(factors, in));
  const std::vector<int64_t> sizes = solve_extents(signature, attrs, in);
  std::vector<Extent> extents;
  for (const int64_t size : sizes) extents.push_back({size, size, {}});
  const OpCall call{signature, sizes, attrs, in};
  const std::vector<TensorType> out = op.infer(call);
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  std::vector<TensorView> views;
  for (const auto* types : {&in, &out}) {
    for (const TensorType& t : *types) {
      memory.push_back(std::make_unique<DeviceMemory>(numel(t.shape) * size_of(t.dtype)));
      views.push_back({memory.back()->data(), t.dtype, t.shape, contiguous_strides(t.shape)});
      fill_random(views.back().data, t.dtype, numel(t.shape), memory.size(), impl_->stream);
    }
  }
  const OpCall placed{signature, sizes, attrs, in, views};
  const DeviceMemory workspace(op.cuda_workspace == nullptr ? 0 : op.cuda_workspace(placed));
  const std::span<const TensorView> all = views;
  const KernelArgs args = {.signature = signature,
                           .attrs = attrs,
                           .in = all.first(in.size()),
                           .out = all.subspan(in.size()),
                           .extents = extents,
                           .workspace = workspace.data(),
                           .device = &impl_->context,
                           .stream = impl_->stream,
                           .element = op.element};
  impl_->context.tf32 = tf32;
  const double seconds = seconds_in_graph(impl_->stream, impl_->effort, [&] { op.cuda(args); });
  impl_->context.tf32 = false;
  return {seconds, op.flops(call), op.bytes(call, out)};
}

double KernelTimer::copy_seconds(int64_t bytes) {
  const DeviceMemory from(bytes), to(bytes);
  const auto n = static_cast<size_t>(bytes);
  fill_random(from.data(), DType::kBF16, bytes / 2, 1, impl_->stream);
  return seconds_in_graph(impl_->stream, impl_->effort, [&] {
    cuda_check(cudaMemcpyAsync(to.data(), from.data(), n, cudaMemcpyDeviceToDevice, impl_->stream));
  });
}

double KernelTimer::host_copy_seconds(int64_t bytes, bool to_device) {
  const DeviceMemory device(bytes);
  const PinnedMemory host(static_cast<size_t>(bytes));
  return seconds_in_graph(impl_->stream, {0, impl_->effort.measure}, [&] {
    cuda_check(cudaMemcpyAsync(to_device ? device.data() : host.data(),
                               to_device ? host.data() : device.data(), static_cast<size_t>(bytes),
                               to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost,
                               impl_->stream));
  });
}

}  // namespace cleave
