// Ten chains of pointwise ops and reductions that no table of fusions knows, on a GPU: how long do
// their generated kernels take? One line a chain: its name, the median in microseconds, the bytes
// that it must move over that, and how many kernels it is. benchmarks/peers/pytorch_chains.py times
// torch.compile on the same ones.
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "benchmarks/benchmark.h"
#include "executor/lower.h"
#include "executor/runtime.h"
#include "executor/typing.h"
#include "planner/planner.h"
#include "tracer/functional.h"
#include "tracer/tensor.h"

namespace cleave {
namespace {

// What a chain reads and makes: states, so that nothing passes between the GPU and the host.
struct Inputs {
  int64_t rows, width;
  int made = 0;
  double bytes = 0;

  Tensor add(Shape shape) {
    bytes += 2.0 * static_cast<double>(numel(shape));
    return state(fmt::format("x{}", made++), std::move(shape), DType::kBF16,
                 {Init::Kind::kNormal, 1});
  }
  Tensor matrix() { return add({rows, width}); }
  Tensor row() { return add({width}); }
  void result(const Tensor& y) {
    bytes += 2.0 * static_cast<double>(y.numel());
    state(fmt::format("y{}", made++), y.shape(), DType::kBF16, {}).copy_(y);
  }
};

struct Case {
  const char* name;
  int64_t rows, width;
  void (*write)(Inputs&);
};

const Case kCases[] = {
    {"softmax of scores with a temperature and a mask", 8192, 4096,
     [](Inputs& in) { in.result(softmax(in.matrix() * 0.7 + in.row())); }},
    {"residual and RMS norm by primitives", 8192, 4096,
     [](Inputs& in) {
       const Tensor h = in.matrix() + in.matrix();
       in.result(h);
       in.result(h * reciprocal(sqrt(mean(square(h), {-1}, true) + 1e-6)) * in.row());
     }},
    {"gated unit of tanh and sigmoid", 8192, 4096,
     [](Inputs& in) {
       const Tensor a = in.matrix();
       in.result(tanh(a) * sigmoid(in.matrix() + in.row()) + a * 0.1);
     }},
    {"smoothed loss with z-loss of each row of logits", 4096, 32768,
     [](Inputs& in) {
       const Tensor x = in.matrix();
       const Tensor lse = logsumexp(x.to(DType::kF32), {-1});
       in.result((lse + 1e-4 * square(lse) - mean(x.to(DType::kF32), {-1})).to(DType::kBF16));
     }},
    {"rows by their largest magnitude, squashed", 8192, 4096,
     [](Inputs& in) {
       const Tensor x = in.matrix();
       const Tensor most = max(relu(x) + relu(-x), {-1}, true) + 1e-6;
       in.result(tanh(x / most) * most);
     }},
    {"sum of products over columns", 8192, 4096,
     [](Inputs& in) { in.result(sum(in.matrix() * in.matrix(), {0})); }},
    {"bias and GELU by primitives", 8192, 4096,
     [](Inputs& in) {
       const Tensor h = in.matrix() + in.row();
       in.result(0.5 * h * (1.0 + tanh(0.7978845608 * (h + 0.044715 * h * h * h))));
     }},
    {"layer norm by primitives, modulated", 8192, 4096,
     [](Inputs& in) {
       const Tensor x = in.matrix(), centred = x - mean(x, {-1}, true);
       const Tensor rstd = reciprocal(sqrt(mean(square(centred), {-1}, true) + 1e-5));
       in.result(centred * rstd * (1.0 + in.row()) + in.row());
     }},
    {"gated unit's backward with a bias gradient", 8192, 4096,
     [](Inputs& in) {
       const Tensor gate = in.matrix(), up = in.matrix(), dy = in.matrix();
       const Tensor s = sigmoid(gate), dgate = dy * up * s * (1.0 + gate * (1.0 - s));
       in.result(dgate);
       in.result(dy * gate * s);
       in.result(sum(dgate, {0}));
     }},
    {"weighted mean of squared errors", 8192, 4096,
     [](Inputs& in) {
       const Tensor error = (in.matrix() - in.matrix()).to(DType::kF32);
       in.result(mean(square(error) * in.row().to(DType::kF32)).to(DType::kBF16));
     }},
};

int run(int argc, char** argv) {
  std::string gpu = "h100";
  int steps = 60;
  bool unfused = false, dump = false;
  CLI::App app("Times chains that are generated kernels");
  app.add_option("--gpu", gpu)->check(CLI::IsMember({"h100", "h200"}));
  app.add_option("--steps", steps, "Timed runs")->check(CLI::Range(1, 1'000'000));
  app.add_flag("--unfused", unfused, "Every op by itself");
  app.add_flag("--dump", dump, "The programs");
  read_arguments(app, argc, argv);
  for (const Case& c : kCases) {
    Tracer tracer("chain", {.compute = DType::kBF16});
    Inputs inputs{c.rows, c.width};
    c.write(inputs);
    const Graph graph = tracer.finish();
    PlannerOptions options;
    options.mesh = parse_mesh("1");
    auto found = find_plan(graph, parse_cluster(gpu), options);
    if (!found.plan) throw std::runtime_error("no plan");
    const Program program = lower(graph, *found.plan, !unfused);
    if (dump) fmt::print("{}\n", to_text(program));
    const int64_t kernels = std::count_if(program.instrs.begin(), program.instrs.end(),
                                          [&](const Instr& i) { return !is_view(program, i); });
    const auto runtime = make_runtime(program, Processor::kGpu, {.seed = 1});
    runtime->initialize();
    std::vector<double> seconds;
    // One step is told to the GPU while another runs, so that it never waits for the host.
    runtime->start();
    for (int i = 0; i < steps; ++i) {
      runtime->start();
      seconds.push_back(runtime->finish().seconds);
    }
    runtime->finish();
    std::nth_element(seconds.begin(), seconds.begin() + steps / 2, seconds.end());
    const double median = seconds[static_cast<size_t>(steps / 2)];
    fmt::print("{:<50} {:8.1f} us {:6.2f} TB/s {:2} kernels\n", c.name, 1e6 * median,
               1e-12 * inputs.bytes / median, kernels);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace cleave

int main(int argc, char** argv) { return cleave::benchmark_main(argc, argv, cleave::run); }
