// Places of tokens in the experts' buffers, and how many tokens experts have: one block a group of
// tokens counts in integers, warp by warp over choices that follow each other.
#include <algorithm>
#include <vector>

#include "kernels/cuda/counting.cuh"

namespace cleave {
namespace {

struct Choices {
  const int* chosen;
  int* slots;
  int* sorted;       // null: slots have a capacity
  Loops<3> groups;   // chosen, slots, sorted
  Loops<2> choices;  // of a group: chosen, slots
  int experts, capacity, warps;
  int64_t sorted_step;
};

// What the CPU refuses, a number that is no expert's, gets slot -1 and, in `sorted`, the rows that
// are left over.
__global__ void __launch_bounds__(kCountingThreads) slots_of_choices(Choices k) {
  extern __shared__ int counts[];
  int64_t base[3];
  k.groups.offsets(blockIdx.x, base);
  const int n = static_cast<int>(k.choices.count);
  const int* starts = nullptr;
  const auto class_of = [&](int i) {
    int64_t at[2];
    k.choices.offsets(i, at);
    const int expert = k.chosen[base[0] + at[0]];
    if (expert >= 0 && expert < k.experts) return expert;
    k.slots[base[1] + at[1]] = -1;
    return -1;
  };
  place_in_order(
      n, k.experts, k.warps, counts, class_of,
      [&](int* totals) {
        if (k.sorted == nullptr) return;
        starts = totals;
        const int all = sums_before(totals, k.experts);
        for (int i = all + static_cast<int>(threadIdx.x); i < n; i += kCountingThreads) {
          k.sorted[base[2] + i * k.sorted_step] = -1;
        }
      },
      [&](int i, int expert, int rank) {
        int64_t at[2];
        k.choices.offsets(i, at);
        int& slot = k.slots[base[1] + at[1]];
        if (k.sorted == nullptr) {
          slot = rank < k.capacity ? expert * k.capacity + rank : -1;
        } else {
          slot = starts[expert] + rank;
          k.sorted[base[2] + slot * k.sorted_step] = expert;
        }
      });
}

// `sorted_dims`: the dimensions of output 1; null when there is none.
void launch_slots(const KernelArgs& args, Choices k, const OperandDims* sorted_dims) {
  std::vector<int8_t> factors = factors_of(args.signature.inputs()[0]);
  const std::vector<int8_t> inner(factors.end() - 2, factors.end());
  factors.resize(factors.size() - 2);
  const Shape chosen = in_strides(args, 0), slots = out_strides(args, 0);
  const Shape sorted = sorted_dims == nullptr ? slots : out_strides(args, 1);
  if (sorted_dims != nullptr) {
    k.sorted = args.out[1].as<int>();
    k.sorted_step = sorted[static_cast<size_t>(factors_of(*sorted_dims).back())];
  }
  k.chosen = args.in[0].as<const int>();
  k.slots = args.out[0].as<int>();
  k.groups = loops_of(nest_over<3>(args, factors, {chosen, slots, sorted}));
  k.choices = loops_of(nest_over<2>(args, inner, {chosen, slots}));
  k.experts = static_cast<int>(args.attrs.integer("experts"));
  k.warps = counting_warps(k.experts);
  if (k.groups.count * k.choices.count == 0) return;
  CLEAVE_ASSERT(k.choices.count <= kMostNumbers && k.groups.count <= INT32_MAX,
                "{} groups of {} choices", k.groups.count, k.choices.count);
  slots_of_choices<<<static_cast<unsigned>(k.groups.count), kCountingThreads,
                     counting_bytes(k.warps, k.experts), static_cast<cudaStream_t>(args.stream)>>>(
      k);
  cuda_check(cudaGetLastError());
}

template <class T>
struct Histogram {
  const int* numbers;
  T* out;
  Loops<2> rows;     // numbers, out
  Loops<1> counted;  // numbers
  Shard classes;
  int64_t class_step;
};

// Each block counts kMostCounts of the classes of a row.
template <class T>
__global__ void __launch_bounds__(kCountingThreads) histogram_of_rows(Histogram<T> h) {
  __shared__ int counts[kMostCounts];
  const int first = static_cast<int>(blockIdx.y) * kMostCounts;
  const int classes = static_cast<int>(min(h.classes.local - first, int64_t{kMostCounts}));
  for (int c = threadIdx.x; c < classes; c += kCountingThreads) counts[c] = 0;
  __syncthreads();
  int64_t base[2];
  h.rows.offsets(blockIdx.x, base);
  const auto class_of = [&](int i) {
    int64_t at[1];
    h.counted.offsets(i, at);
    const int number = h.numbers[base[0] + at[0]];
    if (number < 0 || number >= h.classes.global) return -1;
    const auto own = static_cast<int>(h.classes.own(number)) - first;
    return own >= 0 && own < classes ? own : -1;
  };
  const int n = static_cast<int>(h.counted.count), warp = static_cast<int>(threadIdx.x) / 32;
  const int each = ceil_to_warps(n, kCountingThreads / 32);
  in_steps(min(n, warp * each), min(n, (warp + 1) * each), class_of,
           [&](int, int c, int before, int members) {
             if (c >= 0 && before == 0) atomicAdd(&counts[c], members);
           });
  __syncthreads();
  for (int c = threadIdx.x; c < classes; c += kCountingThreads) {
    using A = Statistic<T>;
    h.out[base[1] + (first + c) * h.class_step] = To<T>::of(static_cast<A>(counts[c]));
  }
}

}  // namespace

void capacity_slots_cuda(const KernelArgs& args) {
  launch_slots(args, {.capacity = static_cast<int>(args.attrs.integer("capacity"))}, nullptr);
}

void sorted_slots_cuda(const KernelArgs& args) {
  launch_slots(args, {}, &args.signature.outputs()[1]);
}

void histogram_cuda(const KernelArgs& args) {
  with_gpu_float(args.out[0].dtype, [&]<class T>(T) {
    std::vector<int8_t> kept = factors_of(args.signature.outputs()[0]), counted;
    const auto e = static_cast<size_t>(kept.back());
    kept.pop_back();
    for (const int8_t f : factors_of(args.signature.inputs()[0])) {
      if (std::find(kept.begin(), kept.end(), f) == kept.end()) counted.push_back(f);
    }
    const Shape numbers = in_strides(args, 0), out = out_strides(args, 0);
    const Histogram<T> h = {.numbers = args.in[0].as<const int>(),
                            .out = args.out[0].as<T>(),
                            .rows = loops_of(nest_over<2>(args, kept, {numbers, out})),
                            .counted = loops_of(nest_over<1>(args, counted, {numbers})),
                            .classes = shard_of(args.extents[e]),
                            .class_step = out[e]};
    if (h.rows.count * h.classes.local == 0) return;
    CLEAVE_ASSERT(h.counted.count <= kMostNumbers && h.classes.global <= INT32_MAX,
                  "{} numbers of {}", h.counted.count, h.classes.global);
    const dim3 blocks(static_cast<unsigned>(h.rows.count),
                      static_cast<unsigned>(ceil_div(h.classes.local, kMostCounts)));
    histogram_of_rows<<<blocks, kCountingThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(h);
    cuda_check(cudaGetLastError());
  });
}

}  // namespace cleave
