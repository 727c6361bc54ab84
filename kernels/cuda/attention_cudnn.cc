// cuDNN's attention through its frontend, which only this file includes.
#include "kernels/cuda/attention_cudnn.h"

#ifdef CLEAVE_CUDNN
#include <cudnn.h>
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <algorithm>
#include <array>
#include <exception>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "graph/error.h"
#include "kernels/cuda/attention_room.h"
#include "kernels/cuda/attention_shape.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/context.h"
#endif

namespace cleave {

#ifdef CLEAVE_CUDNN
namespace {

namespace fe = cudnn_frontend;
using W = AttentionWork;
using Place = AttentionShape::Place;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

constexpr int kScratchSlot = 8;  // of what no program counts

struct AttentionPlan {
  std::unique_ptr<fe::graph::Graph> graph;  // null: cuDNN has none
  int64_t b = 1, g = 1;                     // what one execution does of the whole's
  int64_t workspace = 0;                    // bytes of one execution
  bool copies_lse = false;                  // to and from [b, heads, s]
  int* lengths = nullptr;                   // of the padding mask: b times s, then b times t

  AttentionPlan() = default;
  AttentionPlan(AttentionPlan&& other) noexcept
      : graph(std::move(other.graph)),
        b(other.b),
        g(other.g),
        workspace(other.workspace),
        copies_lse(other.copies_lse),
        lengths(std::exchange(other.lengths, nullptr)) {}
  AttentionPlan& operator=(AttentionPlan&&) = delete;
  ~AttentionPlan() { cudaFree(lengths); }
};

AttentionSizes sizes_of(const AttentionShape& s) { return {s.b, s.g, s.r, s.s, s.t, s.e, s.v}; }

// Whether its workspace is part of the program's.
bool counted(const AttentionShape& shape) {
  return (!shape.backward || shape.deterministic) && counts_cudnn(sizes_of(shape), shape.backward);
}

// Bytes of the workspace before the copied log-sum-exps.
int64_t room_of(const AttentionShape& shape) {
  const AttentionSizes n = sizes_of(shape);
  return shape.backward ? cudnn_backward_bytes(n, backward_slice(n)) : cudnn_forward_bytes(n);
}

bool dense(const AttentionShape& shape) {
  const Place& lse = shape.places[W::kLse];
  const int64_t heads = shape.g * shape.r;
  return lse == Place{heads * shape.s, 1, heads} || lse == Place{heads * shape.s, shape.s, 1};
}

void check(const fe::error_object& status, const char* what) {
  CLEAVE_ASSERT(status.is_good(), "cuDNN: {}: {}", what, status.err_msg);
}
void check(cudnnStatus_t status, const char* what) {
  CLEAVE_ASSERT(status == CUDNN_STATUS_SUCCESS, "cuDNN: {}: {}", what, cudnnGetErrorString(status));
}

// Tensors are known to the graph by these numbers.
int64_t uid_of(int which) { return which + 1; }
constexpr int64_t kQueryLengths = 100, kKeyLengths = 101;

// The graph of a part of the call, which frontend and cuDNN have yet to accept.
std::unique_ptr<fe::graph::Graph> graph_of(const AttentionShape& shape, const AttentionPlan& plan) {
  auto graph = std::make_unique<fe::graph::Graph>();
  const auto type = shape.dtype == DType::kBF16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF;
  graph->set_io_data_type(type)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  AttentionShape part = shape;
  part.b = plan.b, part.g = plan.g;
  // Whose dimensions and strides both the graph's own and given tensors get.
  const auto describe = [&](fe::graph::Tensor_attributes& tensor, int which) {
    const int64_t heads = part.heads(which), rows = part.rows(which), width = part.width(which);
    Place place = part.places[static_cast<size_t>(which)];
    if (which == W::kLse && plan.copies_lse) place = {shape.heads(which) * rows, rows, 1};
    tensor.set_uid(uid_of(which))
        .set_dim({part.b, heads, rows, width})
        .set_stride({place.batch, place.head, place.row, 1})
        .set_data_type(which == W::kLse ? fe::DataType_t::FLOAT : type);
  };
  const auto input = [&](int which) {
    fe::graph::Tensor_attributes tensor;
    describe(tensor, which);
    return graph->tensor(tensor);
  };
  const auto output = [&](const Tensor& tensor, int which) {
    describe(*tensor, which);
    tensor->set_output(true);
  };
  const auto mask = [&](auto& options) {
    options.set_attn_scale(static_cast<float>(shape.scale));
    if (!shape.causal) return;
    options.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
  };
  const Tensor q = input(W::kQ), k = input(W::kK), v = input(W::kV);
  if (!shape.backward) {
    fe::graph::SDPA_attributes options;
    options.set_name("attention")
        .set_generate_stats(true)
        .set_implementation(fe::AttentionImplementation_t::COMPOSITE);
    mask(options);
    const auto [o, lse] = graph->sdpa(q, k, v, options);
    output(o, W::kO);
    output(lse, W::kLse);
    return graph;
  }
  fe::graph::SDPA_backward_attributes options;
  options.set_name("attention_backward").set_deterministic_algorithm(shape.deterministic);
  mask(options);
  if (plan.lengths != nullptr) {
    const auto lengths = [&](int64_t uid) {
      return graph->tensor(fe::graph::Tensor_attributes()
                               .set_uid(uid)
                               .set_dim({part.b, 1, 1, 1})
                               .set_stride({1, 1, 1, 1})
                               .set_data_type(fe::DataType_t::INT32));
    };
    options.set_padding_mask(true)
        .set_seq_len_q(lengths(kQueryLengths))
        .set_seq_len_kv(lengths(kKeyLengths));
  }
  const Tensor o = input(W::kO), d_o = input(W::kDo), lse = input(W::kLse);
  const auto [dq, dk, dv] = graph->sdpa_backward(q, k, v, o, d_o, lse, options);
  output(dq, W::kDq);
  output(dk, W::kDk);
  output(dv, W::kDv);
  return graph;
}

}  // namespace

struct CudnnAttention::Plans {
  cudnnHandle_t handle = nullptr;
  std::map<AttentionShape, AttentionPlan> plans;
  std::vector<std::string> refusals, choices;

  ~Plans() {
    plans.clear();
    if (handle != nullptr) cudnnDestroy(handle);
  }

  // Empty, or what is wrong with it.
  std::string finish(fe::graph::Graph& graph, int64_t& workspace) const {
    try {
      fe::error_object status = graph.validate();
      if (status.is_good()) status = graph.build_operation_graph(handle);
      if (status.is_good()) {
        status = graph.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK});
      }
      if (status.is_good()) status = graph.check_support();
      if (status.is_good()) status = graph.build_plans();
      if (status.is_good()) status = graph.get_workspace_size(workspace);
      return status.is_good() ? "" : status.err_msg + " ";
    } catch (const std::exception& e) {  // of the frontend's older parts
      return std::string(e.what()) + " ";
    }
  }

  AttentionPlan made(const AttentionShape& shape) {
    AttentionPlan plan;
    plan.b = shape.b, plan.g = shape.g;
    if (handle == nullptr) check(cudnnCreate(&handle), "cudnnCreate");
    if (shape.backward && shape.deterministic) {
      const AttentionSlice slice = backward_slice(sizes_of(shape));
      if (slice.b == 0) {
        refusals.push_back(fmt::format("{}: its deterministic backward would take {} bytes",
                                       shape.text(), weights_bytes(sizes_of(shape))));
        return plan;
      }
      plan.b = slice.b, plan.g = slice.g;
    }
    // Up to 9.15 the backward of keys that do not fill their last tile needs a padding mask. The
    // frontend would copy its own from the host whenever it runs, which a captured graph cannot
    // repeat: the lengths are long gone.
    if (shape.backward && shape.t % 128 != 0 && cudnnGetVersion() <= 91500) {
      std::vector<int> lengths(static_cast<size_t>(plan.b), static_cast<int>(shape.s));
      lengths.resize(static_cast<size_t>(2 * plan.b), static_cast<int>(shape.t));
      const size_t bytes = lengths.size() * sizeof(int);
      cuda_check(cudaMalloc(reinterpret_cast<void**>(&plan.lengths), bytes));
      cuda_check(cudaMemcpy(plan.lengths, lengths.data(), bytes, cudaMemcpyHostToDevice));
    }
    // The log-sum-exp where it lies, if cuDNN can; else a copy.
    std::string refusal;
    for (const bool copies : {false, true}) {
      plan.copies_lse = copies;
      if (!copies && !dense(shape)) continue;
      auto graph = graph_of(shape, plan);
      const std::string mistake = finish(*graph, plan.workspace);
      if (!mistake.empty()) {
        refusal += mistake;
        continue;
      }
      if (counted(shape)) {
        const int64_t most = room_of(shape);
        CLEAVE_ASSERT(plan.workspace <= most, "cuDNN wants {} bytes for {}, and gets {}",
                      plan.workspace, shape.text(), most);
      }
      plan.graph = std::move(graph);
      std::string name;
      if (plan.graph->get_plan_name(name).is_bad()) name = "?";
      choices.push_back(fmt::format(
          "{}: {}, {} bytes of workspace{}{}{}", shape.text(), name, plan.workspace,
          copies ? ", its log-sum-exp copied" : "", plan.lengths == nullptr ? "" : ", padded",
          plan.b == shape.b && plan.g == shape.g
              ? ""
              : fmt::format(", {} x {} key heads at a time", plan.b, plan.g)));
      return plan;
    }
    refusals.push_back(fmt::format("{}: {}", shape.text(), refusal));
    return plan;
  }

  void run(const AttentionShape& shape, const AttentionPlan& plan, const AttentionWork& w,
           void* workspace, DeviceContext& device, cudaStream_t stream) {
    const int64_t own = counted(shape) ? room_of(shape) : aligned_workspace(plan.workspace);
    char* const room = static_cast<char*>(
        counted(shape)
            ? workspace
            : device.scratch(kScratchSlot, own + statistics_bytes(sizes_of(shape)), stream));
    std::array<Place, W::kOperands> places = shape.places;
    std::array<char*, W::kOperands> data;
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char*>(w.matrices[i].data);
    StatisticsCopy copy;
    if (plan.copies_lse) {
      const Place ours = places[W::kLse];
      const Place theirs = {shape.heads(W::kLse) * shape.s, shape.s, 1};
      places[W::kLse] = theirs;
      data[W::kLse] = room + own;
      copy = {.from = reinterpret_cast<float*>(data[W::kLse]),
              .to = static_cast<float*>(w.matrices[W::kLse].data),
              .batch = shape.b,
              .heads = shape.heads(W::kLse),
              .rows = shape.s,
              .from_steps = {theirs.batch, theirs.head, theirs.row},
              .to_steps = {ours.batch, ours.head, ours.row}};
      if (shape.backward) {
        float* const to = copy.to;
        copy.to = reinterpret_cast<float*>(data[W::kLse]);
        copy.from = to;
        std::swap(copy.from_steps, copy.to_steps);
        copy_statistics(copy, stream);
      }
    }
    check(cudnnSetStream(handle, stream), "cudnnSetStream");
    for (int64_t batch = 0; batch < shape.b; batch += plan.b) {
      for (int64_t key_head = 0; key_head < shape.g; key_head += plan.g) {
        std::unordered_map<int64_t, void*> pointers;
        for (const int i : shape.operands()) {
          const auto which = static_cast<size_t>(i);
          const int64_t head = shape.by_keys(i) ? key_head : key_head * shape.r;
          const int64_t element = batch * places[which].batch + head * places[which].head;
          const DType dtype = i == W::kLse ? DType::kF32 : shape.dtype;
          pointers[uid_of(i)] = data[which] + element * size_of(dtype);
        }
        if (plan.lengths != nullptr) {
          pointers[kQueryLengths] = plan.lengths;
          pointers[kKeyLengths] = plan.lengths + plan.b;
        }
        check(plan.graph->execute(handle, pointers, room), "execute");
      }
    }
    if (plan.copies_lse && !shape.backward) copy_statistics(copy, stream);
  }

  bool attend(const AttentionShape& shape, const AttentionWork& w, void* workspace,
              DeviceContext& device, cudaStream_t stream) {
    auto found = plans.find(shape);
    if (found == plans.end()) {
      expect_not_captured(stream, "cuDNN's plan for " + shape.text());
      found = plans.emplace(shape, made(shape)).first;
    }
    if (found->second.graph == nullptr) return false;
    run(shape, found->second, w, workspace, device, stream);
    return true;
  }
};

CudnnAttention::CudnnAttention() : plans_(std::make_unique<Plans>()) {}

bool CudnnAttention::attend(const AttentionShape& shape, const AttentionWork& work, void* workspace,
                            DeviceContext& device, cudaStream_t stream) {
  return plans_->attend(shape, work, workspace, device, stream);
}

bool CudnnAttention::available() { return true; }

#else

struct CudnnAttention::Plans {
  std::vector<std::string> refusals, choices;
};

CudnnAttention::CudnnAttention() : plans_(std::make_unique<Plans>()) {}

bool CudnnAttention::attend(const AttentionShape&, const AttentionWork&, void*, DeviceContext&,
                            cudaStream_t) {
  return false;
}

bool CudnnAttention::available() { return false; }

#endif

CudnnAttention::~CudnnAttention() = default;

const std::vector<std::string>& CudnnAttention::refusals() const { return plans_->refusals; }

const std::vector<std::string>& CudnnAttention::choices() const { return plans_->choices; }

}  // namespace cleave
