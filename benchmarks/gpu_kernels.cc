// The kernels of a training step against their own limits, on this machine's GPU: each kind of
// instruction that is no product, as it runs inside the step, in GB/s and as a share of the rate at
// which the GPU copies; and each matrix product by itself, in TFLOP/s and as a share of the fastest
// of cuBLASLt's algorithms, for which far more of them are timed than a run does, with more scratch
// memory, and sums in any order. Before them what `cleave bench` prints, and the time of each op.
#include <fmt/format.h>

#include <cstdio>

#ifdef CLEAVE_CUDA

#include <cuda_runtime_api.h>

#include <algorithm>
#include <limits>
#include <map>
#include <regex>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "cli/benching.h"
#include "cli/device_options.h"
#include "cli/format.h"
#include "executor/cuda/memory.h"
#include "executor/typing.h"
#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/random_fill.h"

namespace cleave {
namespace {

constexpr int64_t kBestWorkspace = int64_t{256} << 20;
constexpr int kBestCandidates = 128;

// Seconds of one launch: of several batches of them, the median.
template <class Launch>
double seconds_of(const Launch& launch, int batch) {
  constexpr int kBatches = 7;
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda_check(cudaEventCreate(&begin));
  cuda_check(cudaEventCreate(&end));
  std::vector<double> seconds;
  for (int b = -1; b < kBatches; ++b) {
    cuda_check(cudaEventRecord(begin, nullptr));
    for (int i = 0; i < batch; ++i) launch();
    cuda_check(cudaEventRecord(end, nullptr));
    cuda_check(cudaEventSynchronize(end));
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (b >= 0) seconds.push_back(static_cast<double>(milliseconds) * 1e-3 / batch);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return median(seconds);
}

// Bytes read and written a second, by a copy that is too large for any cache.
double copy_rate() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const DeviceMemory from(kBytes), to(kBytes);
  fill_random(from.data(), DType::kF32, kBytes / 4, 1, nullptr);
  const double seconds = seconds_of(
      [&] {
        cuda_check(
            cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice, nullptr));
      },
      5);
  return 2.0 * kBytes / seconds;
}

std::string types_of(const Program& p, const Instr& instr) {
  std::string text;
  for (const TensorId t : instr.in) {
    text += fmt::format("{}{}{}", text.empty() ? "" : " ", name_of(p.tensor(t).dtype),
                        to_string(p.tensor(t).geometry.shape));
  }
  if (text.size() > 70) text = text.substr(0, 67) + "...";
  return fmt::format("{} -> {}", text, name_of(p.tensor(instr.out[0]).dtype));
}

struct Kind {
  const Instr* instr = nullptr;
  KernelWork work;
  std::vector<double> seconds;  // of each run in the step
  double sum() const {
    double s = 0;
    for (const double x : seconds) s += x;
    return s;
  }
};

// Instructions that are the same work, the longest together first.
std::vector<Kind> kinds_of(const Program& p, const StepResult& step) {
  std::map<std::string, Kind> kinds;
  for (const InstrRun& run : step.runs.at(0)) {
    const Instr& instr = p.instrs[static_cast<size_t>(run.instr)];
    std::string key = fmt::format("{} {} {}", name_of(instr), types_of(p, instr),
                                  instr.signature != nullptr ? instr.signature->text() : "");
    for (const TensorId t : instr.in) key += to_string(p.tensor(t).geometry.strides);
    Kind& kind = kinds[key];
    if (kind.instr == nullptr) kind = {&instr, work_of(p, instr), {}};
    kind.seconds.push_back(run.seconds);
  }
  std::vector<Kind> all;
  for (auto& [key, kind] : kinds) all.push_back(std::move(kind));
  std::sort(all.begin(), all.end(), [](const Kind& a, const Kind& b) { return a.sum() > b.sum(); });
  return all;
}

// An instruction by itself, on random operands that lie as in its program.
class Alone {
 public:
  Alone(const Program& p, const Instr& instr)
      : instr_(instr), extents_(local_extents(instr, p.mesh, p.mesh.coordinates(0))) {
    for (const TensorId t : instr.in) in_.push_back(view(p.tensor(t)));
    for (const TensorId t : instr.out) out_.push_back(view(p.tensor(t)));
  }

  double seconds(DeviceContext& device, void* workspace, int batch) {
    const KernelArgs args{.signature = *instr_.signature,
                          .attrs = instr_.attrs,
                          .in = in_,
                          .out = out_,
                          .extents = extents_,
                          .workspace = workspace,
                          .device = &device,
                          .stream = nullptr,
                          .element = instr_.op->element};
    return seconds_of([&] { instr_.op->cuda(args); }, batch);
  }

 private:
  TensorView view(const ProgramTensor& t) {
    int64_t span = 1;
    for (size_t d = 0; d < t.geometry.shape.size(); ++d) {
      span += (t.geometry.shape[d] - 1) * t.geometry.strides[d];
    }
    memory_.push_back(std::make_unique<DeviceMemory>(span * size_of(t.dtype)));
    fill_random(memory_.back()->data(), t.dtype, span, memory_.size(), nullptr);
    return {memory_.back()->data(), t.dtype, t.geometry.shape, t.geometry.strides};
  }

  const Instr& instr_;
  const std::vector<Extent> extents_;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
  std::vector<TensorView> in_, out_;
};

void print_kernels(const Program& p, const std::vector<Kind>& kinds, double copy, double all) {
  Table table({"kernel", ">runs", ">ms", ">us each", ">GB/s", ">of copy", "operands"});
  for (const Kind& k : kinds) {
    if (k.work.flops > 0 || k.sum() < 1e-3 * all) continue;
    const double each = median(k.seconds), rate = k.work.bytes / each;
    table.add({std::string(name_of(*k.instr)), std::to_string(k.seconds.size()),
               fmt::format("{:.3f}", k.sum() * 1e3), fmt::format("{:.1f}", each * 1e6),
               fmt::format("{:.0f}", rate / 1e9), fmt::format("{:.0f} %", 100 * rate / copy),
               types_of(p, *k.instr)});
  }
  fmt::print("{}", table.to_string());
}

// The products that an instruction launches; it runs once.
std::vector<Product> products_of(Alone& alone, DeviceContext& device, void* workspace) {
  std::vector<Product> heard;
  device.products().heard = [&](const Product& p) { heard.push_back(p); };
  alone.seconds(device, workspace, 1);
  device.products().heard = nullptr;
  std::sort(heard.begin(), heard.end());
  heard.erase(std::unique(heard.begin(), heard.end()), heard.end());
  return heard;
}

// From now on they have the algorithms that training chose, if it did.
void take_tried(Alone& alone, DeviceContext& device, void* workspace) {
  for (const Product& p : products_of(alone, device, workspace)) device.products().tried(p, device);
}

// From now on it has the algorithm that is the fastest now.
void take_fastest(Alone& alone, DeviceContext& device, void* workspace, int batch) {
  ProductAlgorithms& algorithms = device.products();
  for (const Product& p : products_of(alone, device, workspace)) {
    size_t fastest = 0;
    double least = std::numeric_limits<double>::infinity();
    for (size_t a = 0; a < algorithms.count(p); ++a) {
      algorithms.choose(p, a);
      const double seconds = alone.seconds(device, workspace, batch);
      if (seconds < least) least = seconds, fastest = a;
    }
    algorithms.choose(p, fastest);
  }
}

// `workspace`: the program's largest, and enough for the search.
void print_products(const Program& p, const std::vector<Kind>& kinds, double all) {
  DeviceContext ours(0), best(0);
  best.product_search = {kBestCandidates, kBestWorkspace, true, DeviceContext::OwnProducts::kNone};
  const DeviceMemory workspace(std::max(kBestWorkspace, p.memory.at(0).workspace_bytes));
  Table table({"product", ">runs", ">ms", ">us each", ">TFLOP/s", ">of best", "operands"});
  double weighted = 0, sum = 0;
  for (const Kind& k : kinds) {
    if (class_of(p, *k.instr) != KernelClass::kProducts || k.sum() < 1e-3 * all) continue;
    Alone alone(p, *k.instr);
    constexpr int kBatch = 10;
    take_tried(alone, ours, workspace.data());
    take_fastest(alone, best, workspace.data(), kBatch);
    // Taking turns: the GPU's clock changes with its temperature.
    std::vector<double> a, b;
    for (int turn = 0; turn < 3; ++turn) {
      a.push_back(alone.seconds(ours, workspace.data(), kBatch));
      b.push_back(alone.seconds(best, workspace.data(), kBatch));
    }
    const double share = median(b) / median(a);
    weighted += share * k.sum(), sum += k.sum();
    table.add({std::string(name_of(*k.instr)), std::to_string(k.seconds.size()),
               fmt::format("{:.3f}", k.sum() * 1e3), fmt::format("{:.1f}", median(a) * 1e6),
               fmt::format("{:.0f}", k.work.flops / median(a) / 1e12),
               fmt::format("{:.1f} %", 100 * share), types_of(p, *k.instr)});
  }
  fmt::print("{}all products, weighted by their time in the step: {:.1f} % of the best\n",
             table.to_string(), 100 * weighted / sum);
}

// "gpt2:124m", "gpt2:124m@32", "llama:1b@4x2048": a model, its batch, and the tokens of a sequence.
BenchArguments arguments_of(const std::string& text, const std::string& no_fuse) {
  static const std::regex form("([^@]+)(@([1-9][0-9]{0,8})(x([1-9][0-9]{0,8}))?)?");
  std::smatch found;
  if (!std::regex_match(text, found, form)) {
    fail("'{}' is not MODEL, MODEL@BATCH or MODEL@BATCHxTOKENS", text);
  }
  BenchArguments a;
  a.model.model = found[1];
  if (found[3].matched) a.model.batch = std::stoll(found[3]);
  if (found[5].matched) a.model.set = {"sequence=" + found[5].str()};
  a.model.precision = "bf16";
  a.devices = "h100";
  a.no_fuse = no_fuse;
  model_named(a.model.model);  // throws when there is no such model
  no_fuse_of(no_fuse, true);   // or no such fusion
  return a;
}

void report(const BenchArguments& a, double copy) {
  std::unique_ptr<PreparedBench> prepared = prepare_bench(a);
  const BenchResult result = measure(*prepared, 5, 20);
  const StepResult& step = result.recorded;
  const Program program = prepared->program();
  fmt::print("\n{}\n{}\n", bench_report(*prepared, result, false), ops_table(program, step, false));
  prepared->bench.reset();  // its memory is free for the products
  const std::vector<Kind> kinds = kinds_of(program, step);
  print_kernels(program, kinds, copy, step.seconds);
  print_products(program, kinds, step.seconds);
}

int run(int argc, char** argv) {
  CLI::App app("The kernels of training steps in bf16 against their limits");
  std::vector<std::string> models = {"gpt2:124m@32", "gpt2:355m@16", "megatron:1.2b@8",
                                     "llama:1b@4x2048"};
  std::string no_fuse;
  app.add_option("MODEL", models, "Built-in models: MODEL, MODEL@BATCH or MODEL@BATCHxTOKENS");
  app.add_option("--no-fuse", no_fuse, "Fusions that are not made, or all");
  read_arguments(app, argc, argv);
  std::vector<BenchArguments> wanted;
  for (const std::string& m : models) wanted.push_back(arguments_of(m, no_fuse));
  cudaDeviceProp device{};
  cuda_check(cudaGetDeviceProperties(&device, 0));
  const double copy = copy_rate();
  fmt::print("{}: copies {:.0f} GB/s; algorithms of products: the best of {} with {} MiB\n",
             device.name, copy / 1e9, kBestCandidates, kBestWorkspace >> 20);
  for (const BenchArguments& a : wanted) {
    report(a, copy);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }

#else

int main() {
  fmt::print(stderr, "gpu_kernels: built without CUDA\n");
  return 1;
}

#endif
