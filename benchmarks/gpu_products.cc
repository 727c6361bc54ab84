// Products of bf16 with what stands behind them, alone on this machine's GPU: our own kernels
// beside the best algorithm of cuBLASLt, and beside its best for the product with nothing behind
// it. The products are those of a layer's MLP, and of queries, keys and values; random numbers.
#include <fmt/format.h>

#ifdef CLEAVE_CUDA

#include <cuda_runtime_api.h>

#include <algorithm>
#include <limits>
#include <string>
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

namespace cleave {
namespace {

struct Width {
  const char* name;
  int64_t rows, hidden, ffn, qkv;
};
constexpr Width kWidths[] = {
    {"gpt2:124m", 32768, 768, 3072, 2304},
    {"gpt2:355m", 16384, 1024, 4096, 3072},
    {"gpt2:1558m", 8192, 1600, 6400, 4800},
    {"megatron:1.2b", 8192, 1536, 6144, 4608},
};

class RandomNumbers {
 public:
  RandomNumbers(int64_t count, uint64_t seed) : memory_(2 * count) {
    fill_random(memory_.data(), DType::kBF16, count, seed, nullptr);
  }
  void* data() const { return memory_.data(); }

 private:
  DeviceMemory memory_;
};

// A result [rows, columns] of sums over k.
Product product_of(int64_t rows, int64_t columns, int64_t k, Epilogue epilogue, bool bias) {
  Product p;
  p.m = columns, p.n = rows, p.k = k;
  p.transpose_a = epilogue != Epilogue::kGeluBackward;
  p.a.leading = p.transpose_a ? k : columns;
  p.b.leading = k, p.d.leading = columns;
  p.in = p.out = DType::kBF16;
  p.has_bias = bias;
  p.epilogue = epilogue;
  return p;
}

class Bench {
 public:
  explicit Bench(DeviceContext& device) : device_(device), workspace_(kProductWorkspace) {
    cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Bench() { cudaStreamDestroy(stream_); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  // The median of each algorithm, in ms, in the order of their numbers.
  std::vector<double> medians(const Product& p) {
    const RandomNumbers a(p.m * p.k, 1), b(p.n * p.k, 2), bias(p.m, 3), d(p.m * p.n, 4),
        aux(p.m * p.n, 5);
    cuda_check(cudaDeviceSynchronize());
    const ProductData data = {a.data(), b.data(), nullptr, bias.data(), d.data(), aux.data()};
    const auto launch = [&] {
      return device_.products().run(p, data, workspace_.data(), device_, stream_);
    };
    if (launch() == ProductAlgorithms::Made::kNothing) return {};
    std::vector<double> result;
    for (size_t i = 0; i < device_.products().count(p); ++i) {
      device_.products().choose(p, i);
      result.push_back(median_ms(launch, stream_));
    }
    return result;
  }

 private:
  DeviceContext& device_;
  DeviceMemory workspace_;
  cudaStream_t stream_ = nullptr;
};

int run(int argc, char** argv) {
  CLI::App app("Products with what stands behind them: our kernels beside cuBLASLt's");
  std::string only;
  app.add_option("--only", only, "This model's alone: gpt2:124m, ...");
  read_arguments(app, argc, argv);
  const auto wanted = [&](const Width& w) { return only.empty() || only == w.name; };
  if (std::none_of(std::begin(kWidths), std::end(kWidths), wanted)) {
    throw Error(fmt::format("there are no products of '{}'", only));
  }
  DeviceContext device(0);
  device.product_search.own = DeviceContext::OwnProducts::kLast;
  Bench bench(device);
  fmt::print("{}, bf16; ms (TFLOP/s)\n\n", device.properties().name);
  fmt::print("{:<14}{:<24}{:<16}{:>16}{:>16}   {:<36}{:>6}\n", "", "result, over", "behind it",
             "cuBLASLt, none", "cuBLASLt", "ours", "ratio");
  for (const Width& w : kWidths) {
    if (!wanted(w)) continue;
    const Product products[] = {
        product_of(w.rows, w.ffn, w.hidden, Epilogue::kGelu, true),
        product_of(w.rows, w.ffn, w.hidden, Epilogue::kGeluBackward, false),
        product_of(w.rows, w.qkv, w.hidden, Epilogue::kNone, true),
        product_of(w.rows, w.hidden, w.hidden, Epilogue::kNone, true),
        product_of(w.rows, w.hidden, w.ffn, Epilogue::kNone, true),
    };
    for (const Product& p : products) {
      const double flops =
          2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
      const auto text = [&](double ms) {
        return fmt::format("{:.3f} ({:.0f})", ms, flops / ms * 1e-9);
      };
      Product plain = p;
      plain.epilogue = Epilogue::kNone;
      plain.has_bias = false;
      std::vector<double> ms = bench.medians(p), without = bench.medians(plain);
      const auto own = [&](const Product& of) {
        return static_cast<std::ptrdiff_t>(own_kernels(of, device.properties().major));
      };
      const auto best = [](auto begin, auto end) {
        return begin == end ? std::numeric_limits<double>::infinity()
                            : *std::min_element(begin, end);
      };
      const double library = best(ms.begin(), ms.end() - own(p));
      std::string ours;
      for (auto i = ms.end() - own(p); i != ms.end(); ++i) ours += text(*i) + "  ";
      fmt::print(
          "{:<14}{:<24}{:<16}{:>16}{:>16}   {:<36}{:>6}\n", w.name,
          fmt::format("[{}, {}], {}", p.n, p.m, p.k),
          p.epilogue == Epilogue::kGelu           ? "bias, GELU"
          : p.epilogue == Epilogue::kGeluBackward ? "GELU's slope"
                                                  : "bias",
          text(best(without.begin(), without.end() - own(plain))), text(library), ours,
          ours.empty() ? "-" : fmt::format("{:.2f}", library / best(ms.end() - own(p), ms.end())));
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
