// Measures this machine's GPU: the instructions of steps of small models, fused as in training and
// in the middle of it, matrix products over shapes and types, attention over head sizes and
// lengths, copies, and what a launch from a graph takes.
#include "cli/calibration.h"
#include "graph/error.h"

#ifdef CLEAVE_CUDA
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/model_spec.h"
#include "cli/planning.h"
#include "cli/times_in_place.h"
#include "executor/cuda/kernel_timer.h"
#include "executor/lower.h"
#include "executor/prediction.h"
#include "executor/typing.h"
#include "kernels/ops.h"
#include "planner/planner.h"
#endif

namespace cleave {

#ifndef CLEAVE_CUDA

Calibration calibrate_gpu(const Cluster&, bool) {
  fail(
      "this build of Cleave has no kernels for GPUs: build it where a CUDA toolkit 13 is "
      "installed");
}

#else
namespace {

struct Shape3 {
  int64_t m, n, k;
};

// A layer's three products: its result, and the gradients of its input and of its weights.
enum class Pass { kForward, kInput, kWeights };

std::string_view factors_of(Pass pass) {
  switch (pass) {
    case Pass::kForward: return "mk,nk->mn";
    case Pass::kInput: return "mk,kn->mn";
    case Pass::kWeights: return "km,kn->mn";
  }
  return "";
}

class GpuCalibration {
 public:
  GpuCalibration(const Cluster& kind, bool quick)
      : quick_(quick), timer_(quick ? 0.02 : 0.15, quick ? 0.004 : 0.012) {
    result_.cluster = kind;
    Cluster& c = result_.cluster;
    c.spec = "this machine";
    c.nodes = c.devices_per_node = 1;
    c.description.clear();
    const GpuFacts facts = timer_.facts();
    Device& d = c.device;
    d.name = facts.name;
    d.memory = 0.96 * facts.memory;
    d.tiling.units = facts.multiprocessors;
    d.ops.clear();
    for (MatrixRate* r : {&d.f64, &d.f32, &d.bf16, &d.f16, &d.tf32}) r->measured.clear();
  }

  Calibration run() {
    copies();
    models();
    attention();
    products();
    Device& d = result_.cluster.device;
    // Launches are counted by the op's own start.
    d.ops = fitted_ops(result_.ops, d.op_latency);
    for (OpRate& r : fitted_experts(result_.experts, d, d.bf16.peak)) d.ops.push_back(std::move(r));
    std::sort(d.ops.begin(), d.ops.end(),
              [](const OpRate& a, const OpRate& b) { return a.op < b.op; });
    for (size_t i = 0; i < programs_.size(); ++i) {
      const RunSeconds run = run_seconds(programs_[i].first, programs_[i].second, result_.cluster);
      for (const double seconds : run.phases) result_.steps[i].predicted += seconds;
    }
    return std::move(result_);
  }

 private:
  void copies() {
    Device& d = result_.cluster.device;
    constexpr int64_t kLarge = int64_t{1} << 30, kHost = int64_t{1} << 28;
    // Of the driver's copies or of a kernel, whichever are faster.
    const TensorType large = {DType::kF32, {kLarge / 4}};
    const KernelTimer::Figure add = timer_.time(ops::add, "a,a->a", {}, {large, large});
    d.bandwidth = std::max(2 * static_cast<double>(kLarge) / timer_.copy_seconds(kLarge),
                           add.bytes / add.seconds);
    d.op_latency =
        timer_.time(ops::add, "a,a->a", {}, {{DType::kF32, {8}}, {DType::kF32, {8}}}).seconds;
    d.host_latency = timer_.host_copy_seconds(8, true);
    const double both =
        timer_.host_copy_seconds(kHost, true) + timer_.host_copy_seconds(kHost, false);
    d.host_bandwidth = 2 * static_cast<double>(kHost) / both;
  }

  // --- Products ----------------------------------------------------------------------------------

  void product(DType dtype, const Shape3& s, Pass pass, bool tf32) {
    const auto [m, n, k] = s;
    if (!tf32 && of_models(dtype, m, n, k) != nullptr) return;
    const std::array<std::array<Shape, 2>, 3> shapes = {
        {{{{m, k}, {n, k}}}, {{{m, k}, {k, n}}}, {{{k, m}, {k, n}}}}};
    const auto& [a, b] = shapes[static_cast<size_t>(pass)];
    const auto f = timer_.time(ops::matmul, factors_of(pass), {}, {{dtype, a}, {dtype, b}}, tf32);
    result_.products.push_back({dtype, m, n, k, f.seconds});
  }

  // Of so many tokens through a layer from `in` to `out` numbers, all three.
  void layer(DType dtype, int64_t tokens, int64_t in, int64_t out, bool tf32) {
    product(dtype, {tokens, out, in}, Pass::kForward, tf32);
    product(dtype, {tokens, in, out}, Pass::kInput, tf32);
    product(dtype, {out, in, tokens}, Pass::kWeights, tf32);
  }

  MatrixRate rate_of(size_t first, double peak) const {
    const auto begin = result_.products.begin();
    return measured_rate({begin + static_cast<int64_t>(first), result_.products.end()},
                         result_.cluster, peak, result_.cluster.device.op_latency);
  }

  void products() {
    Device& d = result_.cluster.device;
    const auto measure = [&](DType dtype, MatrixRate& rate, bool many, bool tf32) {
      size_t first = result_.products.size();
      // What models multiplied, in their own layouts.
      for (const OfModels& p : of_models_) {
        if (p.product.dtype == dtype && !tf32) result_.products.push_back(p.product);
      }
      layer(dtype, 8192, 1024, 4096, tf32);
      layer(dtype, 2048, 2048, 2048, tf32);
      product(dtype, {4096, 4096, 4096}, Pass::kForward, tf32);
      product(dtype, {512, 512, 512}, Pass::kForward, tf32);
      product(dtype, {1000, 1000, 1000}, Pass::kForward, tf32);  // no multiple of a tile
      if (many) {
        for (const auto& [tokens, in, out] : {Shape3{8192, 768, 2304},
                                              {8192, 1536, 6144},
                                              {8192, 2048, 8192},
                                              {8192, 4096, 11008},
                                              {8192, 4096, 4096},
                                              {32768, 768, 3072},
                                              {32768, 768, 768},
                                              {2048, 1024, 4096},
                                              {2048, 4096, 4096},
                                              {1024, 768, 768}}) {
          layer(dtype, tokens, in, out, tf32);
        }
        product(dtype, {8192, 8192, 8192}, Pass::kForward, tf32);
        product(dtype, {4097, 1031, 777}, Pass::kForward, tf32);
        product(dtype, {256, 256, 8192}, Pass::kWeights, tf32);
        for (const int64_t rows : {16, 128}) {
          product(dtype, {rows, 4096, 4096}, Pass::kForward, tf32);
        }
      }
      rate = rate_of(first, rate.peak);
    };
    measure(DType::kBF16, d.bf16, !quick_, false);
    measure(DType::kF16, d.f16, false, false);
    measure(DType::kF32, d.tf32, false, true);
    measure(DType::kF32, d.f32, false, false);
    measure(DType::kF64, d.f64, false, false);
  }

  // --- Attention ---------------------------------------------------------------------------------

  void fused(bool backward, double width, double flops, const TensorType& rows, double seconds) {
    const int products =
        backward ? ops::attention_backward.fused_products : ops::attention.fused_products;
    const double length = flops / (2.0 * products * static_cast<double>(numel(rows.shape)));
    (backward ? backward_ : forward_)
        .push_back({width, length, flops,
                    std::max(seconds - result_.cluster.device.op_latency, seconds / 2)});
  }

  void attention() {
    Attrs attrs;
    attrs.set("causal", int64_t{1});
    attrs.set("scale", 0.125);
    const std::vector<int64_t> lengths =
        quick_ ? std::vector<int64_t>{1024, 2048} : std::vector<int64_t>{512, 1024, 2048, 4096};
    for (const int64_t width : {64, 96, 128}) {
      for (const int64_t length : lengths) {
        const int64_t batch = 8192 / length, heads = 2048 / width;
        const TensorType x{DType::kBF16, {batch, length, heads, width}},
            lse{DType::kF32, {batch, length, heads}};
        const auto f = timer_.time(ops::attention, "bshE,bThE,bThV->bshV,bsh|s:indexed,T:indexed",
                                   attrs, {x, x, x});
        fused(false, static_cast<double>(width), f.flops, x, f.seconds);
        const auto b = timer_.time(ops::attention_backward,
                                   "bshV,bshE,bthE,bthV,bshV,bsh->bshE,bthE,bthV|s:indexed,"
                                   "t:indexed",
                                   attrs, {x, x, x, x, x, lse});
        fused(true, static_cast<double>(width), b.flops, x, b.seconds);
      }
    }
    Device& d = result_.cluster.device;
    d.fused = fitted_fused(forward_, d.bf16.peak);
    d.fused_backward = fitted_fused(backward_, d.bf16.peak);
    result_.attention = forward_;
    result_.attention_backward = backward_;
  }

  // --- Programs ----------------------------------------------------------------------------------

  struct Sample {
    const char* name;
    std::vector<std::string> set;
    int64_t batch;
  };

  void models() {
    // The first is the smallest, which tells what recording takes.
    std::vector<Sample> samples = {{"gpt2:124m", {"layers=1", "sequence=256"}, 2},
                                   {"megatron:1.2b", {"layers=2"}, 8},
                                   {"llama:1b", {"layers=2", "sequence=2048"}, 4}};
    if (!quick_) {
      samples.push_back({"gpt2:124m", {"layers=2"}, 32});
      samples.push_back({"llama:1b", {"layers=1", "sequence=256", "vocab=8192"}, 2});
      samples.push_back({"llama:7b", {"layers=1", "sequence=2048"}, 4});
      samples.push_back({"mixtral:8x7b",
                         {"layers=1", "hidden=2048", "heads=16", "kv_heads=4", "ffn=7168",
                          "sequence=1024", "capacity_factor=0"},
                         8});
    }
    for (const Sample& s : samples) model(s);
  }

  void model(const Sample& sample) {
    ModelSpec spec;
    spec.name = sample.name, spec.set = sample.set, spec.batch = sample.batch;
    spec.dtype = DType::kBF16;
    const TracedModel model = trace_model(spec, nullptr);
    const PlannerOptions options = planner_options(model.graph, "", "none");
    const PlanResult found = find_plan(model.graph, result_.cluster, options);
    CLEAVE_ASSERT(found.plan.has_value(), "{} has no plan on one device", sample.name);
    RunOptions run;  // what a few layers would choose is not to be kept for whole models
    run.least_tried = std::numeric_limits<double>::infinity();
    StepBench bench(model.graph, lower(model.graph, *found.plan, true), model.config.vocab,
                    Processor::kGpu, run);
    TimesInPlace times = times_in_place(bench, quick_ ? 0.2 : 0.7, quick_ ? 3 : 5);
    if (result_.steps.empty()) overhead_ = recording_overhead(times);
    take_off(times, overhead_);
    const Program& program = bench.runtime().program();
    result_.steps.push_back({describe(model), times.step, 0});
    programs_.emplace_back(model.graph, program);
    for (size_t i = 0; i < program.instrs.size(); ++i) {
      const Instr& instr = program.instrs[i];
      if (times.seconds[i] > 0 && instr.kind == InstrKind::kCompute) {
        add(program, instr, times.seconds[i]);
      }
    }
  }

  void add(const Program& program, const Instr& instr, double seconds) {
    const std::vector<TensorType> in = local_input_types(program, instr);
    const std::vector<int64_t> sizes = local_sizes(instr, program.mesh);
    const OpCall call{*instr.signature, sizes, instr.attrs, in};
    const std::span<const ProductRole> roles = instr.signature->product_roles();
    if (instr.op->fused_products == 2 || instr.op->fused_products == 5) {
      const double width = static_cast<double>(in[0].shape.back());
      fused(instr.op->fused_products > 2, width, instr.op->flops(call), in[0], seconds);
      return;
    }
    std::vector<TensorType> out;
    for (const TensorId t : instr.out) {
      out.push_back({program.tensor(t).dtype, program.tensor(t).layout.local_shape(program.mesh)});
    }
    const double bytes = instr.op->bytes(call, out);
    if (instr.op->fused_products > 0) {
      result_.experts.push_back(
          {std::string(instr.op->name), bytes, seconds, instr.op->flops(call)});
      return;
    }
    if (!roles.empty()) {
      std::array<int64_t, 4> size = {1, 1, 1, 1};
      for (size_t f = 0; f < roles.size(); ++f) size[static_cast<size_t>(roles[f])] *= sizes[f];
      const auto of = [&](ProductRole role) { return size[static_cast<size_t>(role)]; };
      if (of(ProductRole::kBatch) > 1) return;
      const double after =
          instr.op->bytes_after(call, out) / result_.cluster.device.bandwidth;  // comes on top
      add({in[0].dtype, of(ProductRole::kRows), of(ProductRole::kColumns), of(ProductRole::kInner),
           std::max(seconds - after, seconds / 2)});
      return;
    }
    if (bytes > 0) result_.ops.push_back({std::string(instr.op->name), bytes, seconds});
  }

  // Equal layers have equal products; what is stored with them differs.
  struct OfModels {
    MeasuredProduct product;  // with their mean
    int64_t count = 1;
  };
  OfModels* of_models(DType dtype, int64_t m, int64_t n, int64_t k) {
    const auto at = std::find_if(of_models_.begin(), of_models_.end(), [&](const OfModels& other) {
      const MeasuredProduct& p = other.product;
      return p.dtype == dtype && p.m == m && p.n == n && p.k == k;
    });
    return at == of_models_.end() ? nullptr : &*at;
  }
  void add(const MeasuredProduct& p) {
    if (OfModels* known = of_models(p.dtype, p.m, p.n, p.k)) {
      double& mean = known->product.seconds;
      mean += (p.seconds - mean) / static_cast<double>(++known->count);
    } else {
      of_models_.push_back({p});
    }
  }

  const bool quick_;
  KernelTimer timer_;
  Calibration result_;
  double overhead_ = 0;  // of recording a launch
  std::vector<OfModels> of_models_;
  std::vector<std::pair<Graph, Program>> programs_;  // by step
  std::vector<MeasuredFused> forward_, backward_;
};

}  // namespace

Calibration calibrate_gpu(const Cluster& kind, bool quick) {
  return GpuCalibration(kind, quick).run();
}

#endif

}  // namespace cleave
