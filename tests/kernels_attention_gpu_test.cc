// Attention of 16 bits as models have it, with queries, keys and values in one tensor: our own
// kernels and cuDNN's against the CPU in double. Each call is run, then captured as a graph and run
// again.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/gpu_checks.h"

#ifdef CLEAVE_CUDA

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#include "tests/support/op_checks.h"
#include "tests/support/op_compare.h"

#endif

namespace cleave {
namespace {

#ifdef CLEAVE_CUDA

using testing::Application;
using testing::f64;
using testing::HostTensor;
using testing::OpCase;

struct Heads {
  int64_t b, s, g, r, d;
  bool causal;
};

// An operand's rows in device memory that several operands may share.
struct Rows {
  char* data = nullptr;
  size_t bytes = 0, pitch = 0;  // of a row, and from one to the next
};

class AttentionOnGpu : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (!testing::has_gpu()) GTEST_SKIP() << "no GPU here";
    choose(Kernels::kTensorCores);
    device().deterministic_attention = true;
  }

  enum class Kernels { kTensorCores, kCudnn, kAnyType };
  static constexpr std::pair<Kernels, std::string_view> kAll[] = {
      {Kernels::kTensorCores, "our own kernels on tensor cores"},
      {Kernels::kCudnn, "cuDNN's kernels"},
      {Kernels::kAnyType, "our own kernels for any type"}};
  // Those, or where they cannot, the ones behind them.
  static void choose(Kernels kernels) {
    device().tensor_core_attention = kernels == Kernels::kTensorCores;
    device().cudnn_attention = kernels != Kernels::kAnyType;
  }

  static DeviceContext& device() {
    static DeviceContext context(0);
    return context;
  }

  // Of the batch and the sequence; sums over these are one row.
  static int64_t rows_of(const TensorView& v) {
    return v.shape.size() < 2 ? 1 : v.shape[0] * v.shape[1];
  }

  // Copies the operands to the device, those in `fused` into one tensor after the other's heads,
  // runs the op, and copies the results back. Whether a captured run gave the same bits as the
  // first.
  bool run(const OpDef& op, const OpCall& call, const KernelArgs& args,
           const std::vector<size_t>& fused_in, const std::vector<size_t>& fused_out) {
    std::vector<void*> memory;
    const auto allocate = [&](size_t bytes) {
      void* data = nullptr;
      cuda_check(cudaMalloc(&data, bytes));
      cuda_check(cudaMemset(data, 0xff, bytes));
      memory.push_back(data);
      return static_cast<char*>(data);
    };
    std::vector<TensorView> in(args.in.begin(), args.in.end()),
        out(args.out.begin(), args.out.end());
    const auto place = [&](std::vector<TensorView>& views, const std::vector<size_t>& fused) {
      std::vector<Rows> rows(views.size());
      const auto row_of = [](const TensorView& v) { return v.numel() / rows_of(v); };
      int64_t whole = 0;
      for (const size_t i : fused) whole += row_of(views[i]);
      char* shared = nullptr;
      for (size_t i = 0; i < views.size(); ++i) {
        TensorView& v = views[i];
        const auto size = static_cast<size_t>(size_of(v.dtype));
        const int64_t own = row_of(v);
        rows[i].bytes = rows[i].pitch = static_cast<size_t>(own) * size;
        const auto count = static_cast<size_t>(rows_of(v));
        if (std::find(fused.begin(), fused.end(), i) == fused.end()) {
          rows[i].data = allocate(rows[i].bytes * count);
        } else {
          if (shared == nullptr) shared = allocate(static_cast<size_t>(whole) * size * count);
          rows[i].data = shared;
          rows[i].pitch = static_cast<size_t>(whole) * size;
          shared += rows[i].bytes;
          v.strides[0] = v.shape[1] * whole, v.strides[1] = whole;
        }
        v.data = rows[i].data;
      }
      return rows;
    };
    const std::vector<Rows> in_rows = place(in, fused_in), out_rows = place(out, fused_out);
    const auto copy = [](const TensorView& host, const Rows& rows, bool back, void* to = nullptr) {
      void* const data = to == nullptr ? host.data : to;
      const auto count = static_cast<size_t>(rows_of(host));
      cuda_check(back ? cudaMemcpy2D(data, rows.bytes, rows.data, rows.pitch, rows.bytes, count,
                                     cudaMemcpyDeviceToHost)
                      : cudaMemcpy2D(rows.data, rows.pitch, data, rows.bytes, rows.bytes, count,
                                     cudaMemcpyHostToDevice));
    };
    for (size_t i = 0; i < in.size(); ++i) copy(args.in[i], in_rows[i], false);
    void* workspace = nullptr;
    if (op.cuda_workspace != nullptr) {
      workspace = allocate(static_cast<size_t>(std::max<int64_t>(op.cuda_workspace(call), 1)));
    }
    cudaStream_t stream = nullptr;
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const auto launch = [&] {
      op.cuda({.signature = args.signature,
               .attrs = args.attrs,
               .in = in,
               .out = out,
               .extents = args.extents,
               .workspace = workspace,
               .device = &device(),
               .stream = stream});
    };
    cuda_check(cudaDeviceSynchronize());
    launch();
    cuda_check(cudaStreamSynchronize(stream));
    std::vector<std::vector<char>> first;
    for (size_t o = 0; o < out.size(); ++o) {
      const TensorView& host = args.out[o];
      first.emplace_back(static_cast<size_t>(host.numel() * size_of(host.dtype)));
      copy(host, out_rows[o], true, first.back().data());
      std::memset(host.data, 0xff, first.back().size());
      copy(host, out_rows[o], false);
    }
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launch();
    cuda_check(cudaStreamEndCapture(stream, &graph));
    cuda_check(cudaGraphInstantiate(&executable, graph, 0));
    cuda_check(cudaGraphLaunch(executable, stream));
    cuda_check(cudaStreamSynchronize(stream));
    bool same = true;
    for (size_t o = 0; o < out.size(); ++o) {
      copy(args.out[o], out_rows[o], true);
      same &= std::memcmp(args.out[o].data, first[o].data(), first[o].size()) == 0;
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    for (void* data : memory) cuda_check(cudaFree(data));
    return same;
  }

  void round(HostTensor& t, DType dtype) {
    t.type.dtype = dtype;
    for (double& x : t.numbers) x = testing::rounded(x, dtype);
  }
  // The same numbers as doubles.
  Application doubles(Application a) {
    for (HostTensor& t : a.in) t.type.dtype = DType::kF64;
    return a;
  }

  // Runs one op and compares; gives what the CPU computed.
  std::vector<HostTensor> check(const Application& a, const std::vector<size_t>& fused_in,
                                const std::vector<size_t>& fused_out, const std::string& what) {
    std::vector<HostTensor> want = testing::run_op(doubles(a), {.view = false});
    for (const auto& [kernels, name] : kAll) {
      choose(kernels);
      const std::string which = fmt::format("{} of {}, {}", a.op->name, what, name);
      const size_t refused = device().attention().refusals().size();
      try {
        bool same = false;
        std::vector<HostTensor> got = testing::run_op(
            a, {.kernel = [&](const OpDef& op, const OpCall& call, const KernelArgs& args, auto) {
              same = run(op, call, args, fused_in, fused_out);
            }});
        EXPECT_TRUE(same || !device().deterministic_attention) << which;
        for (size_t o = 0; o < got.size(); ++o) {
          const DType dtype = got[o].type.dtype;
          got[o].type.dtype = DType::kF64;
          const double tolerance =
              (dtype == DType::kF32 ? 1e-3 : (dtype == DType::kBF16 ? 2e-2 : 4e-3)) *
              (o == 3 ? 8 : 1);  // of sums over all rows, which may be near 0
          EXPECT_EQ(testing::difference(got[o], want[o], tolerance), "")
              << which << ", output " << o;
        }
      } catch (const std::exception& e) {
        ADD_FAILURE() << which << ": " << e.what();
      }
      const std::vector<std::string>& refusals = device().attention().refusals();
      for (size_t i = refused; i < refusals.size(); ++i) ADD_FAILURE() << refusals[i];
    }
    choose(Kernels::kTensorCores);
    return want;
  }

  void check(const Heads& h) {
    const DType dtype = GetParam();
    const std::string what = fmt::format("{}, [{}, {}, {} of {}, {}]{}", name_of(dtype), h.b, h.s,
                                         h.g * h.r, h.g, h.d, h.causal ? ", causal" : "");
    const TensorType q = f64({h.b, h.s, h.g * h.r, h.d}), k = f64({h.b, h.s, h.g, h.d}),
                     lse = f64({h.b, h.s, h.g * h.r});
    const Attrs attrs = {{"causal", int64_t{h.causal}},
                         {"scale", 1 / std::sqrt(static_cast<double>(h.d))},
                         {"r", h.r}};
    const OpCase forward = {.op = &ops::attention,
                            .factors = "bs(gr)E,btgE,btgV->bs(gr)V,bs(gr)|s:indexed,t:indexed",
                            .attrs = attrs,
                            .in = {q, k, k},
                            .ranges = {{-2, 2}, {-2, 2}, {-1, 1}}};
    // Where the three gradients are of one size, also their sums.
    const bool sums = h.r == 1;
    Attrs backward_attrs = attrs;
    if (sums) backward_attrs.set("sum", int64_t{1}), backward_attrs.set("X", int64_t{3});
    const OpCase backward = {
        .op = &ops::attention_backward,
        .factors = "bs(gr)V,bs(gr)E,btgE,btgV,bs(gr)V,bs(gr)->bs(gr)E,btgE,btgV" +
                   std::string(sums ? ",(XgrE)" : "") + "|s:indexed,t:indexed",
        .attrs = backward_attrs,
        .in = {q, q, k, k, q, lse}};
    Application a = testing::application_of(forward, 5), d = testing::application_of(backward, 6);
    for (HostTensor& t : a.in) round(t, dtype);
    const std::vector<HostTensor> results = check(a, {0, 1, 2}, {}, what);
    for (size_t i = 0; i < 3; ++i) d.in[1 + i].numbers = a.in[i].numbers;
    for (size_t i = 0; i < 2; ++i) d.in[4 + i].numbers = results[i].numbers;
    for (HostTensor& t : d.in) round(t, dtype);
    d.in[5].numbers = results[1].numbers;
    round(d.in[5], DType::kF32);
    check(d, {1, 2, 3}, {0, 1, 2}, what);
  }

  static void TearDownTestSuite() {
    if (!testing::has_gpu()) return;
    for (const std::string& choice : device().attention().choices()) fmt::print("{}\n", choice);
  }
};

TEST_P(AttentionOnGpu, OneHeadForEachKeyHead) {
  for (const bool causal : {true, false}) {
    check({2, 128, 12, 1, 64, causal});
    check({1, 1024, 16, 1, 96, causal});
    check({2, 257, 25, 1, 64, causal});
    check({1, 200, 3, 1, 128, causal});
    check({2, 1, 2, 1, 64, causal});
    check({1, 449, 2, 1, 128, causal});
  }
}

TEST_P(AttentionOnGpu, SeveralHeadsForAKeyHead) {
  for (const bool causal : {true, false}) {
    check({1, 512, 8, 4, 64, causal});
    check({1, 512, 4, 7, 128, causal});
    check({3, 300, 1, 6, 80, causal});
    check({2, 130, 2, 3, 96, causal});
  }
}

TEST_P(AttentionOnGpu, WideHeads) {
  for (const bool causal : {true, false}) {
    check({1, 384, 4, 1, 256, causal});
    check({2, 256, 2, 2, 160, causal});
  }
}

// The deterministic backward then goes by some heads, or some of the batch, at a time.
TEST_P(AttentionOnGpu, MoreWeightsThanAreStored) { check({2, 2048, 3, 8, 64, true}); }

TEST_P(AttentionOnGpu, GradientsInAnyOrder) {
  device().deterministic_attention = false;
  for (const bool causal : {true, false}) {
    check({2, 257, 25, 1, 64, causal});
    check({1, 512, 4, 7, 128, causal});
    check({1, 384, 4, 1, 256, causal});
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionOnGpu, ::testing::Values(DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

#else

TEST(AttentionOnGpu, NeedsABuildWithCuda) { GTEST_SKIP() << "built without CUDA"; }

#endif

}  // namespace
}  // namespace cleave
