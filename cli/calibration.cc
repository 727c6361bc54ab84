#include "cli/calibration.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>

#include "cli/format.h"
#include "executor/prediction.h"
#include "executor/rank_threads.h"
#include "executor/run_info.h"
#include "executor/thread_communicator.h"
#include "graph/error.h"
#include "graph/op.h"
#include "graph/thread_team.h"
#include "kernels/ops.h"
#include "planner/cost.h"

namespace cleave {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One op on memory of its own, as a rank runs it.
class KernelRun {
 public:
  KernelRun(const OpDef& op, std::string_view factors, Attrs attrs, std::vector<TensorType> in,
            ThreadTeam& team)
      : op_(op),
        signature_(Signature::get(expand_factors(factors, in))),
        attrs_(std::move(attrs)),
        in_(std::move(in)),
        team_(team) {
    const std::vector<int64_t> sizes = solve_extents(signature_, attrs_, in_);
    for (int64_t size : sizes) extents_.push_back({size, size, {}});
    const OpCall call{signature_, sizes, attrs_, in_};
    out_ = op.infer(call);
    if (op.workspace != nullptr) workspace_.resize(static_cast<size_t>(op.workspace(call)) + 64);
    for (const TensorType& t : in_) in_views_.push_back(view(t));
    for (const TensorType& t : out_) out_views_.push_back(view(t));
    flops_ = op.flops(call);
    bytes_ = op.bytes(call, out_);
  }

  void operator()() {
    void* workspace = workspace_.data();
    size_t room = workspace_.size();
    if (room > 0) std::align(64, room - 64, workspace, room);
    op_.cpu({.signature = signature_,
             .attrs = attrs_,
             .in = in_views_,
             .out = out_views_,
             .extents = extents_,
             .workspace = workspace,
             .team = &team_});
  }
  double flops() const { return flops_; }
  double bytes() const { return bytes_; }

 private:
  // Small numbers that differ, so that nothing overflows or is denormal.
  TensorView view(const TensorType& t) {
    const auto n = static_cast<size_t>(numel(t.shape));
    memory_.push_back(std::make_unique<std::byte[]>(n * static_cast<size_t>(size_of(t.dtype))));
    std::byte* const data = memory_.back().get();
    for (size_t i = 0; i < n; ++i) {
      const double x = 0.01 * static_cast<double>(1 + i % 7);
      if (t.dtype == DType::kF32) reinterpret_cast<float*>(data)[i] = static_cast<float>(x);
      if (t.dtype == DType::kF64) reinterpret_cast<double*>(data)[i] = x;
    }
    return {data, t.dtype, t.shape, contiguous_strides(t.shape)};
  }

  const OpDef& op_;
  const Signature& signature_;
  const Attrs attrs_;
  std::vector<TensorType> in_, out_;
  ThreadTeam& team_;
  std::vector<Extent> extents_;
  std::vector<std::unique_ptr<std::byte[]>> memory_;
  std::vector<std::byte> workspace_;
  std::vector<TensorView> in_views_, out_views_;
  double flops_ = 0, bytes_ = 0;
};

class Bench {
 public:
  Bench(int64_t devices, double effort)
      : effort_(effort), threads_(devices, [] {}), least_(static_cast<size_t>(devices)) {
    const int64_t cores = std::max<int64_t>(1, usable_cores() / devices);
    for (int64_t d = 0; d < devices; ++d) {
      teams_.push_back(std::make_unique<ThreadTeam>(static_cast<int>(cores)));
    }
  }

  struct Figure {
    double seconds = 0, flops = 0, bytes = 0;
  };
  // All devices run the op for `effort` seconds; the mean over them of each one's least time.
  Figure operator()(const OpDef& op, std::string_view factors, const Attrs& attrs,
                    const std::vector<TensorType>& in) {
    std::vector<std::unique_ptr<KernelRun>> runs;
    for (auto& team : teams_) {
      runs.push_back(std::make_unique<KernelRun>(op, factors, attrs, in, *team));
    }
    threads_.run([&](int64_t rank) {
      KernelRun& run = *runs[static_cast<size_t>(rank)];
      run();
      double least = 1e9;
      const auto start = Clock::now();
      do {
        const auto begin = Clock::now();
        run();
        least = std::min(least, since(begin));
      } while (since(start) < effort_);
      least_[static_cast<size_t>(rank)] = least;
    });
    Figure f{0, runs[0]->flops(), runs[0]->bytes()};
    for (double s : least_) f.seconds += s / static_cast<double>(least_.size());
    return f;
  }

 private:
  const double effort_;
  RankThreads threads_;
  std::vector<std::unique_ptr<ThreadTeam>> teams_;
  std::vector<double> least_;  // by device
};

// Least seconds of an all-reduce of so many f32 between so many ranks.
double all_reduce_seconds(int64_t ranks, int64_t elements, double effort) {
  const Mesh mesh{{{"a", ranks}}};
  ThreadWorld world(mesh);
  RankThreads threads(ranks, [&] { world.abort(); });
  std::vector<std::unique_ptr<ThreadCommunicator>> ends;
  std::vector<std::vector<float>> in, out;
  for (int64_t r = 0; r < ranks; ++r) {
    ends.push_back(std::make_unique<ThreadCommunicator>(world, r));
    in.emplace_back(static_cast<size_t>(elements), 0.5F);
    out.emplace_back(static_cast<size_t>(elements));
  }
  double least = 1e9;
  const auto start = Clock::now();
  do {
    constexpr int kRounds = 8;
    std::vector<double> seconds(static_cast<size_t>(ranks));
    threads.run([&](int64_t r) {
      const auto i = static_cast<size_t>(r);
      CollectiveTensor tensor;
      tensor.in = in[i].data(), tensor.out = out[i].data();
      tensor.sizes[4] = elements;
      for (int round = 0; round < kRounds; ++round) {
        const auto begin = Clock::now();
        ends[i]->run(InstrKind::kAllReduce, 0, Reduction::kSum, {&tensor, 1});
        const double s = since(begin);
        seconds[i] = round == 0 ? s : std::min(seconds[i], s);
      }
    });
    // Who comes last waits for nobody: the slowest rank's time is the collective's.
    least = std::min(least, *std::max_element(seconds.begin(), seconds.end()));
  } while (since(start) < effort);
  return least;
}

std::string machine() {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  return fmt::format("{}, {} cores", host.data(), usable_cores());
}

double machine_memory() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

}  // namespace

Calibration calibrate_cpu(int64_t devices, double effort) {
  Calibration result;
  Bench bench(devices, effort);
  const auto product = [&](DType dtype, int64_t m, int64_t n, int64_t k) {
    const auto f = bench(ops::matmul, "mk,nk->mn", {}, {{dtype, {m, k}}, {dtype, {n, k}}});
    result.products.push_back({dtype, m, n, k, f.seconds});
  };
  constexpr std::array<std::array<int64_t, 3>, 9> kShapes = {{{512, 512, 512},
                                                              {1024, 512, 512},
                                                              {256, 256, 1024},
                                                              {256, 1024, 64},
                                                              {1024, 64, 256},
                                                              {64, 1024, 256},
                                                              {16, 512, 512},
                                                              {512, 16, 512},
                                                              {512, 512, 16}}};
  Cluster& c = result.cluster;
  c.spec = "this machine";
  c.devices_per_node = devices;
  Device& d = c.device;
  d.name = "CPU device";
  d.overlaps = false;  // what computes is what communicates
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    const size_t first = result.products.size();
    for (const auto& [m, n, k] : kShapes) product(dtype, m, n, k);
    (dtype == DType::kF32 ? d.f32 : d.f64) =
        fitted_rate({result.products.begin() + static_cast<int64_t>(first), result.products.end()});
  }
  d.bf16 = d.f16 = d.f32;  // there are no kernels of 16 bits for CPUs

  // Larger than the caches; and as small as can be.
  const TensorType large{DType::kF32, {int64_t{1} << 22}}, one{DType::kF32, {8}};
  const auto add = bench(ops::add, "a,a->a", {}, {large, large});
  d.bandwidth = add.bytes / add.seconds;
  d.op_latency = bench(ops::add, "a,a->a", {}, {one, one}).seconds;
  // Ops whose flops are counted from 1 to 8 an element, in the cache; between them is what the rest
  // is taken for.
  const TensorType rows{DType::kF32, {64, 256}}, row{DType::kF32, {256}};
  Attrs eps;
  eps.set("eps", 1e-5);
  const std::array figures = {bench(ops::gelu, "ab->ab", {}, {rows}),
                              bench(ops::softmax, "aB->aB", {}, {rows}),
                              bench(ops::layer_norm, "aD,D,D->aD,a,a", eps, {rows, row, row})};
  double product_of_rates = 1;
  for (const Bench::Figure& f : figures) {
    product_of_rates *= f.flops / std::max(f.seconds - d.op_latency, 1e-9);
  }
  d.vector_flops = std::cbrt(product_of_rates);

  const TensorType x{DType::kF32, {2, 256, 4, 64}}, lse{DType::kF32, {2, 256, 4}};
  Attrs attrs;
  attrs.set("causal", int64_t{1});
  attrs.set("scale", 0.125);
  const auto forward =
      bench(ops::attention, "bshE,bThE,bThV->bshV,bsh|s:indexed,T:indexed", attrs, {x, x, x});
  const auto backward = bench(ops::attention_backward,
                              "bshV,bshE,bthE,bthV,bshV,bsh->bshE,bthE,bthV|s:indexed,t:indexed",
                              attrs, {x, x, x, x, x, lse});
  const double share = forward.flops / forward.seconds / d.f32.peak;
  d.fused = {.efficiency = share,
             .backward = backward.flops / backward.seconds / d.f32.peak / share};

  const double memory = machine_memory();
  d.memory = 0.8 * memory / static_cast<double>(devices);
  c.host_memory = 0.2 * memory;  // what the devices leave of it
  d.host_bandwidth = d.bandwidth;
  d.host_latency = d.op_latency;

  const int64_t most = std::max<int64_t>(2, devices);
  for (int64_t ranks = 2; ranks <= most;
       ranks = ranks < most ? std::min(2 * ranks, most) : most + 1) {
    for (const int64_t elements : {int64_t{16}, int64_t{1} << 16, int64_t{1} << 20}) {
      result.collectives.push_back(
          {ranks, 4 * static_cast<double>(elements), all_reduce_seconds(ranks, elements, effort)});
    }
  }
  // The quickest starts; the largest, between most ranks, gives the bandwidth of what each sends.
  // Three sizes for each number of ranks; a wait that went to sleep shows in small ones.
  const auto& of = result.collectives;
  Tier tier;
  tier.name = "memory";
  const auto quickest = [&](size_t first) {
    return std::min({of[first].seconds, of[first + 1].seconds, of[first + 2].seconds});
  };
  const double small = quickest(of.size() - 3), more = static_cast<double>(most - 2);
  tier.link.start = quickest(0);
  if (more > 0) tier.link.latency = std::max(0.0, (small - tier.link.start) / (2 * more));
  const double sent = 2 * of.back().bytes * (1 - 1 / static_cast<double>(most));
  tier.link.bandwidth = sent / std::max(of.back().seconds - small, 1e-9);
  c.tiers.push_back(tier);
  return result;
}

std::string calibration_report(const Calibration& calibration) {
  const Cluster& c = calibration.cluster;
  const Device& d = c.device;
  std::string text = fmt::format("{}: {} devices\n\n", machine(), c.size());
  Table products({"matrix product", ">m", ">n", ">k", ">GFLOP/s", ">as fitted"});
  DType last = DType::kI32;
  for (const MeasuredProduct& p : calibration.products) {
    const double fitted = product_seconds(c, p.dtype, 1, static_cast<double>(p.m),
                                          static_cast<double>(p.n), static_cast<double>(p.k));
    products.add({p.dtype == last ? "" : std::string(name_of(p.dtype)), std::to_string(p.m),
                  std::to_string(p.n), std::to_string(p.k), fmt::format("{:.1f}", p.rate() / 1e9),
                  fmt::format("{:.1f}", p.rate() * p.seconds / fitted / 1e9)});
    last = p.dtype;
  }
  text += products.to_string();
  text += fmt::format("\nattention      {:.1f} GFLOP/s forward, {:.1f} backward\n",
                      d.fused.efficiency * d.f32.peak / 1e9,
                      d.fused.efficiency * d.fused.backward * d.f32.peak / 1e9);
  text += fmt::format("copies         {:.1f} GB/s\n", d.bandwidth / 1e9);
  text += fmt::format("pointwise      {:.2f} Gflop/s\n", d.vector_flops / 1e9);
  text += fmt::format("start of an op {:.2f} us\n\n", d.op_latency * 1e6);
  Table collectives({"all-reduce", ">ranks", ">time"});
  for (const MeasuredCollective& m : calibration.collectives) {
    collectives.add({bytes_text(m.bytes), std::to_string(m.ranks), seconds_text(m.seconds)});
  }
  return text + collectives.to_string();
}

std::string gpu_calibration_report(const Calibration& calibration) {
  const Cluster& c = calibration.cluster;
  const Device& d = c.device;
  std::string text = fmt::format("{}: {} of memory\n\n", d.name, bytes_text(d.memory / 0.96));
  Table products({"matrix product", ">m", ">n", ">k", ">TFLOP/s"});
  DType last = DType::kI32;
  for (const MeasuredProduct& p : calibration.products) {
    products.add({p.dtype == last ? "" : std::string(name_of(p.dtype)), std::to_string(p.m),
                  std::to_string(p.n), std::to_string(p.k),
                  fmt::format("{:.1f}", p.rate() / 1e12)});
    last = p.dtype;
  }
  text += products.to_string() + "\n";
  Table rates({"rate", ">of the peak", ">half m", ">half n", ">half k"});
  const auto rate = [&](const char* name, const MatrixRate& r) {
    rates.add({name, percent_text(r.efficiency), fmt::format("{:.0f}", r.half_m),
               fmt::format("{:.0f}", r.half_n), fmt::format("{:.0f}", r.half_k)});
  };
  rate("bf16", d.bf16), rate("f16", d.f16), rate("tf32", d.tf32), rate("f32", d.f32);
  rate("f64", d.f64);
  text += rates.to_string() + "\n";
  Table attention({"attention", ">head", ">keys a query", ">TFLOP/s"});
  const auto calls = [&](const char* name, const std::vector<MeasuredFused>& all) {
    for (const MeasuredFused& f : all) {
      attention.add({&f == &all[0] ? name : "", fmt::format("{:.0f}", f.width),
                     fmt::format("{:.0f}", f.length),
                     fmt::format("{:.1f}", f.flops / f.seconds / 1e12)});
    }
  };
  calls("forward", calibration.attention);
  calls("backward", calibration.attention_backward);
  text += attention.to_string() + "\n";
  Table ops({"op", ">GB/s", ">starts in"}), experts({"experts' products", ">of the peak"});
  for (const OpRate& r : d.ops) {
    if (r.efficiency > 0) {
      experts.add({r.op, percent_text(r.efficiency)});
    } else {
      ops.add({r.op, fmt::format("{:.0f}", r.bandwidth / 1e9), seconds_text(r.start)});
    }
  }
  text += ops.to_string() + "\n";
  if (!calibration.experts.empty()) text += experts.to_string() + "\n";
  Table steps({"a step of", ">predicted", ">measured", ""});
  for (const MeasuredStep& s : calibration.steps) {
    steps.add({s.model, seconds_text(s.predicted), seconds_text(s.seconds),
               beyond_prediction(s.predicted, s.seconds)});
  }
  text += steps.to_string();
  text += fmt::format(
      "\ncopies {:.0f} GB/s, {:.1f} GB/s from and to the host; a launch from a graph "
      "{:.2f} us\n",
      d.bandwidth / 1e9, d.host_bandwidth / 1e9, d.op_latency * 1e6);
  return text;
}

}  // namespace cleave
