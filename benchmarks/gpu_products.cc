// Products of bf16 with what stands behind them, alone on this machine's GPU: our own kernels
// beside the best algorithm of cuBLASLt, and beside its best for the product with nothing behind
// it. What cuBLASLt has no epilogue for, sums over rows and SwiGLU, is another launch, whose time
// counts. The products are those of a layer's MLP, and of queries, keys and values of GPTs; random
// numbers.
#include <fmt/format.h>

#ifdef CLEAVE_CUDA

#include <cuda_runtime_api.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/benchmark.h"
#include "benchmarks/launch_times.h"
#include "executor/cuda/memory.h"
#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/product_hopper.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/random_fill.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

struct Width {
  const char* name;
  int64_t rows, hidden, ffn, qkv;  // qkv 0: an MLP with SwiGLU
};
constexpr Width kWidths[] = {
    {"gpt2:124m", 32768, 768, 3072, 2304},  {"gpt2:355m", 16384, 1024, 4096, 3072},
    {"gpt2:1558m", 8192, 1600, 6400, 4800}, {"megatron:1.2b", 8192, 1536, 6144, 4608},
    {"llama:1b", 8192, 2048, 8192, 0},      {"qwen2.5:1.5b", 8192, 1536, 8960, 0},
    {"llama:7b", 8192, 4096, 11008, 0},
};

// What is launched: a result of rows r and columns c, of sums over K; H: two of them.
struct Kind {
  const char* name;
  const OpDef* op;
  const char* factors;
  Attrs attrs;
};
const Kind kGelu = {
    "bias, GELU", &ops::linear, "rK,cK,c->rc,rc", {{"bias", int64_t{1}}, {"gelu", int64_t{1}}}};
const Kind kSlope = {"GELU's slope, sums",
                     &ops::linear,
                     "rK,Kc,rc->rc,c",
                     {{"gelu_backward", int64_t{1}}, {"sum", int64_t{1}}, {"wide", int64_t{2}}}};
const Kind kBias = {"bias", &ops::linear, "rK,cK,c->rc", {{"bias", int64_t{1}}}};
const Kind kSwiglu = {"SwiGLU", &ops::linear, "rK,HcK->rHc,rc", {{"swiglu", int64_t{1}}}};
const Kind kSwigluBackward = {
    "SwiGLU's gradients", &ops::linear, "rK,Kc,rc,rc->rc,rc", {{"swiglu_backward", int64_t{1}}}};
const Kind kBoth = {"", &ops::matmul, "rK,HcK->rHc", {}};
const Kind kForward = {"", &ops::matmul, "rK,cK->rc", {}};
const Kind kBackward = {"", &ops::matmul, "rK,Kc->rc", {}};

struct Sizes {
  int64_t rows, columns, k;
};

// The median of each algorithm of its product, in ms; of our kernels those behind `own`.
struct Times {
  std::vector<double> ms;
  std::ptrdiff_t own;
};

class Bench {
 public:
  explicit Bench(DeviceContext& device) : device_(device), workspace_(kWorkspace) {
    cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Bench() { cudaStreamDestroy(stream_); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  Times times(const Kind& kind, const Sizes& sizes) {
    const Signature& signature = Signature::get(kind.factors);
    std::vector<Extent> extents;
    for (const Factor& f : signature.factors()) {
      const int64_t size = f.letter == 'r'   ? sizes.rows
                           : f.letter == 'c' ? sizes.columns
                           : f.letter == 'H' ? 2
                                             : sizes.k;
      extents.push_back({size, size, {}});
    }
    std::deque<DeviceMemory> memory;
    // `vectors`: the type of those of one dimension.
    const auto tensors = [&](const std::vector<OperandDims>& all, DType vectors) {
      std::vector<TensorView> views;
      for (const OperandDims& dims : all) {
        Shape shape;
        for (const DimFactors& dim : dims) {
          shape.push_back(extents[static_cast<size_t>(dim[0])].local);
        }
        const DType dtype = dims.size() == 1 ? vectors : DType::kBF16;
        const DeviceMemory& m = memory.emplace_back(numel(shape) * size_of(dtype));
        fill_random(m.data(), dtype, numel(shape), memory.size(), nullptr);
        views.push_back({m.data(), dtype, shape, contiguous_strides(shape)});
      }
      return views;
    };
    const std::vector<TensorView> in = tensors(signature.inputs(), DType::kBF16),
                                  out = tensors(signature.outputs(), DType::kF32);
    cuda_check(cudaDeviceSynchronize());
    const auto launch = [&] {
      kind.op->cuda({.signature = signature,
                     .attrs = kind.attrs,
                     .in = in,
                     .out = out,
                     .extents = extents,
                     .workspace = workspace_.data(),
                     .device = &device_,
                     .stream = stream_});
    };
    Product product;
    ProductAlgorithms& products = device_.products();
    products.heard = [&](const Product& p) { product = p; };
    launch();
    products.heard = nullptr;
    Times result;
    for (size_t i = 0; i < products.count(product); ++i) {
      products.choose(product, i);
      result.ms.push_back(median_ms(launch, stream_));
    }
    result.own = static_cast<std::ptrdiff_t>(result.ms.size() -
                                             own_kernels(product, device_.properties().major));
    return result;
  }

 private:
  static constexpr int64_t kWorkspace = int64_t{256} << 20;  // more than any of these takes
  DeviceContext& device_;
  DeviceMemory workspace_;
  cudaStream_t stream_ = nullptr;
};

int run(int argc, char** argv) {
  CLI::App app("Products with what stands behind them: our kernels beside cuBLASLt's");
  std::string only;
  std::set<std::string> names;
  for (const Width& w : kWidths) names.insert(w.name);
  app.add_option("--only", only, "This model's alone")->check(CLI::IsMember(names));
  read_arguments(app, argc, argv);
  const auto wanted = [&](const Width& w) { return only.empty() || only == w.name; };
  DeviceContext device(0);
  Bench bench(device);
  fmt::print("{}, bf16; ms (TFLOP/s)\n\n", device.properties().name);
  fmt::print("{:<14}{:<24}{:<20}{:>16}{:>16}   {:<36}{:>6}\n", "", "result, over", "behind it",
             "cuBLASLt, none", "cuBLASLt", "ours", "ratio");
  for (const Width& w : kWidths) {
    if (!wanted(w)) continue;
    struct Compared {
      const Kind *kind, *plain;  // what is looked at, and the product alone
      Sizes sizes;
    };
    const Sizes mlp = {w.rows, w.ffn, w.hidden};
    const std::vector<Compared> of_gpt = {{&kGelu, &kForward, mlp},
                                          {&kSlope, &kBackward, mlp},
                                          {&kBias, &kForward, {w.rows, w.qkv, w.hidden}},
                                          {&kBias, &kForward, {w.rows, w.hidden, w.hidden}},
                                          {&kBias, &kForward, {w.rows, w.hidden, w.ffn}}},
                                gated = {{&kSwiglu, &kBoth, mlp},
                                         {&kSwigluBackward, &kBackward, mlp}};
    for (const auto& [kind, alone, sizes] : w.qkv > 0 ? of_gpt : gated) {
      const double flops = (kind == &kSwiglu ? 4.0 : 2.0) * static_cast<double>(sizes.rows) *
                           static_cast<double>(sizes.columns) * static_cast<double>(sizes.k);
      const auto text = [&](double ms) {
        return fmt::format("{:.3f} ({:.0f})", ms, flops / ms * 1e-9);
      };
      const Times whole = bench.times(*kind, sizes), plain = bench.times(*alone, sizes);
      const auto best = [](auto begin, auto end) {
        return begin == end ? std::numeric_limits<double>::infinity()
                            : *std::min_element(begin, end);
      };
      const auto own = whole.ms.begin() + whole.own;
      const double library_alone = best(plain.ms.begin(), plain.ms.begin() + plain.own);
      const double library = best(whole.ms.begin(), own);
      std::string ours;
      for (auto i = own; i != whole.ms.end(); ++i) ours += text(*i) + "  ";
      fmt::print("{:<14}{:<24}{:<20}{:>16}{:>16}   {:<36}{:>6}\n", w.name,
                 fmt::format("[{}, {}], {}", sizes.rows, sizes.columns, sizes.k), kind->name,
                 text(library_alone), text(library), ours,
                 ours.empty() ? "-" : fmt::format("{:.2f}", library / best(own, whole.ms.end())));
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }

#else

int main() {
  fmt::print(stderr, "gpu_products: built without CUDA\n");
  return 1;
}

#endif
