// Rows of tokens moved into slots and back. Tokens gather their rows from the slots that they have.
// Slots do not know their tokens: first every choice leaves its number with its slot, the first and
// the last of those that have one slot, by minima of integers; then slots gather too. So nothing is
// added up in an order that could change.
#include <vector>

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

constexpr int kThreads = 256;

// From the number of a slot, among all slots of a group, to this shard's.
struct Slots {
  static constexpr int kMost = 4;
  int factors = 0;  // innermost first
  Shard shards[kMost];
  int64_t steps[kMost] = {};  // in the buffers

  // The number among this shard's slots of the group, and where it lies in the buffers from the
  // group's first; false when another shard has the slot, or nobody.
  __device__ bool find(int slot, int& own, int64_t& offset) const {
    if (slot < 0) return false;
    own = 0;
    offset = 0;
    int weight = 1;
    for (int f = 0; f < factors; ++f) {
      const int size = static_cast<int>(shards[f].global), rest = slot / size;
      int64_t index = slot - rest * size;
      if (shards[f].cuts > 0) index = shards[f].own(index);
      if (index < 0) return false;
      own += static_cast<int>(index) * weight;
      offset += index * steps[f];
      weight *= static_cast<int>(shards[f].local);
      slot = rest;
    }
    return slot == 0;
  }
};

// --- Tokens that gather --------------------------------------------------------------------------

template <class T>
struct Gather {
  const T* y;
  const int* slots;
  const T* weights;  // null: all 1
  T* x;
  Loops<4> tokens;   // x, y, slots, weights
  Loops<2> choices;  // slots, weights
  Slots own;
  int n;
  int64_t y_step, x_step;
};

// x[token] = the sum of y[slot], times its weight, over its choices in their order.
template <class T, int N, int G>
__global__ void __launch_bounds__(kRowThreads<G>) rows_of_tokens(Gather<T> g) {
  using A = Statistic<T>;
  constexpr int kKept = 4;  // choices that are found once
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= g.tokens.count) return;
  int64_t at[4];
  g.tokens.offsets(r, at);
  const auto choice = [&](int c, int64_t& offset, A& weight) {
    int64_t at_choice[2];
    g.choices.offsets(c, at_choice);
    int own;
    weight = 1;
    if (!g.own.find(g.slots[at[2] + at_choice[0]], own, offset)) return false;
    if (g.weights != nullptr) weight = number(g.weights[at[3] + at_choice[1]]);
    return true;
  };
  const int choices = static_cast<int>(g.choices.count);
  int64_t offsets[kKept];
  A weights[kKept];
  bool there[kKept];
#pragma unroll
  for (int c = 0; c < kKept; ++c) there[c] = c < choices && choice(c, offsets[c], weights[c]);
  for (int v = static_cast<int>(threadIdx.x) % G; v < g.n / N; v += G) {
    A sum[N] = {};
    const auto add = [&](const Vec<T, N>& row, A weight) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += weight * number(row.x[j]);
    };
    Vec<T, N> rows[kKept];
#pragma unroll
    for (int c = 0; c < kKept; ++c) {
      if (there[c]) rows[c] = row_load<N>(g.y + at[1] + offsets[c], g.y_step, v);
    }
#pragma unroll
    for (int c = 0; c < kKept; ++c) {
      if (there[c]) add(rows[c], weights[c]);
    }
    for (int c = kKept; c < choices; ++c) {
      int64_t offset;
      A weight;
      if (choice(c, offset, weight)) add(row_load<N>(g.y + at[1] + offset, g.y_step, v), weight);
    }
    Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.x[j] = To<T>::of(sum[j]);
    row_store(g.x + at[0], g.x_step, v, out);
  }
}

// --- Slots that gather ---------------------------------------------------------------------------

// Of a slot: the number of the first choice, within its group, that has it; and the number below 0
// of the last. Both are kNobody when none has.
struct Owner {
  int first, minus_last;
};
static_assert(sizeof(Owner) == kSlotOwnerBytes);
constexpr int kNobodyByte = 0x7f, kNobody = 0x7f7f7f7f;

template <class T>
struct Scatter {
  const T* x;
  const int* slots;
  const T* weights;  // null: all 1
  T* y;
  Owner* owners;     // [groups, slots]
  Loops<3> groups;   // x, slots, weights
  Loops<3> choices;  // of a group: x, slots, weights
  Loops<1> rows;     // of the buffers, [groups, slots]: y
  Slots own;
  int64_t all_slots;  // of a group in this shard
  int n;
  int64_t x_step, y_step;
};

template <class T>
__global__ void __launch_bounds__(kThreads) owners_of_slots(Scatter<T> s) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t group = i / s.choices.count;
  if (group >= s.groups.count) return;
  const int choice = static_cast<int>(i - group * s.choices.count);
  int64_t base[3], at[3], offset;
  s.groups.offsets(group, base);
  s.choices.offsets(choice, at);
  int own;
  if (!s.own.find(s.slots[base[1] + at[1]], own, offset)) return;
  Owner& owner = s.owners[group * s.all_slots + own];
  atomicMin(&owner.first, choice);
  atomicMin(&owner.minus_last, -choice);
}

// y[slot] = the sum of x[token], times its weight, over the choices that have it in their order.
template <class T, int N, int G>
__global__ void __launch_bounds__(kRowThreads<G>) rows_of_slots(Scatter<T> s) {
  using A = Statistic<T>;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= s.rows.count) return;
  const int64_t group = r / s.all_slots;
  const int slot = static_cast<int>(r - group * s.all_slots);
  int64_t to[1], base[3];
  s.rows.offsets(r, to);
  s.groups.offsets(group, base);
  const Owner owner = s.owners[r];
  for (int v = static_cast<int>(threadIdx.x) % G; v < s.n / N; v += G) {
    A sum[N] = {};
    for (int c = owner.first; owner.first != kNobody && c <= -owner.minus_last; ++c) {
      int64_t at[3], offset;
      s.choices.offsets(c, at);
      int own;
      const bool mine = c == owner.first || c == -owner.minus_last ||
                        (s.own.find(s.slots[base[1] + at[1]], own, offset) && own == slot);
      if (!mine) continue;
      const A weight = s.weights == nullptr ? A{1} : number(s.weights[base[2] + at[2]]);
      const Vec<T, N> row = row_load<N>(s.x + base[0] + at[0], s.x_step, v);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += weight * number(row.x[j]);
    }
    Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.x[j] = To<T>::of(sum[j]);
    row_store(s.y + to[0], s.y_step, v, out);
  }
}

// --- Gradients of weights ------------------------------------------------------------------------

template <class T>
struct Products {
  const T *dx, *y;
  const int* slots;
  T* dweights;
  Loops<4> choices;  // dx, y, slots, dweights
  Slots own;
  int n;
  int64_t dx_step, y_step;
};

// dweights[token, choice] = dx[token] . y[slot].
template <class T, int N, int G>
__global__ void __launch_bounds__(kRowThreads<G>) products_of_choices(Products<T> p) {
  using A = Statistic<T>;
  __shared__ A shared[32];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (kRowThreads<G> / G) + threadIdx.x / G;
  if (r >= p.choices.count) return;
  int64_t at[4], offset = 0;
  p.choices.offsets(r, at);
  int own;
  const bool there = p.own.find(p.slots[at[2]], own, offset);
  A sum = 0;
  for (int v = static_cast<int>(threadIdx.x) % G; there && v < p.n / N; v += G) {
    const Vec<T, N> a = row_load<N>(p.dx + at[0], p.dx_step, v);
    const Vec<T, N> b = row_load<N>(p.y + at[1] + offset, p.y_step, v);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += number(a.x[j]) * number(b.x[j]);
  }
  sum = over_group<G>(sum, shared, Add{});
  if (threadIdx.x % G == 0) p.dweights[at[3]] = To<T>::of(sum);
}

// --- Launchers -----------------------------------------------------------------------------------

// The factors of a call by their role.
struct Roles {
  std::vector<int8_t> group;   // of all operands
  std::vector<int8_t> token;   // of the tokens and their slots
  std::vector<int8_t> choice;  // of the slots only
  std::vector<int8_t> slot;    // of the buffers only
  size_t width;                // of the tokens and the buffers, the last of both

  Roles(const OperandDims& tokens, const OperandDims& buffers, const OperandDims& slots)
      : width(static_cast<size_t>(tokens.back()[0])) {
    for (const int8_t f : factors_of(slots)) {
      const bool of_tokens = Signature::carries(tokens, f);
      const bool of_buffers = Signature::carries(buffers, f);
      (of_buffers ? group : of_tokens ? token : choice).push_back(f);
    }
    for (const int8_t f : factors_of(buffers)) {
      if (f != static_cast<int8_t>(width) && !Signature::carries(slots, f)) slot.push_back(f);
    }
  }
};

std::vector<int8_t> joined(std::vector<int8_t> a, const std::vector<int8_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// `strides`: of the buffers.
Slots slots_of(const KernelArgs& args, const Roles& roles, const Shape& strides) {
  Slots slots;
  CLEAVE_ASSERT(roles.slot.size() <= static_cast<size_t>(Slots::kMost),
                "slots are numbered by {} factors", roles.slot.size());
  for (size_t i = roles.slot.size(); i-- > 0;) {
    const auto f = static_cast<size_t>(roles.slot[i]);
    slots.shards[slots.factors] = shard_of(args.extents[f]);
    slots.steps[slots.factors++] = strides[f];
  }
  return slots;
}

int width_of(const KernelArgs& args, const Roles& roles) {
  const int64_t width = args.extents[roles.width].local;
  CLEAVE_ASSERT(width <= INT32_MAX, "rows of {} elements", width);
  return static_cast<int>(width);
}

// Whether the buffers' rows can be moved 16 bytes at a time, whatever their slots.
template <class T>
bool wide_slots(const Slots& slots) {
  for (int f = 0; f < slots.factors; ++f) {
    if (slots.shards[f].local > 1 && slots.steps[f] % kWide<T> != 0) return false;
  }
  return true;
}

void gather(const KernelArgs& args) {
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Signature& s = args.signature;
    const Roles roles(s.outputs()[0], s.inputs()[0], s.inputs()[1]);
    const bool weighted = args.in.size() == 3;
    const Shape x = out_strides(args, 0), y = in_strides(args, 0), slots = in_strides(args, 1);
    const Shape weights = in_strides(args, weighted ? 2 : 1);
    const auto tokens =
        nest_over<4>(args, joined(roles.group, roles.token), {x, y, slots, weights});
    const Gather<T> g = {
        .y = args.in[0].as<const T>(),
        .slots = args.in[1].as<const int>(),
        .weights = weighted ? args.in[2].as<const T>() : nullptr,
        .x = args.out[0].as<T>(),
        .tokens = loops_of(tokens),
        .choices = loops_of(nest_over<2>(args, roles.choice, {slots, weights})),
        .own = slots_of(args, roles, y),
        .n = width_of(args, roles),
        .y_step = y[roles.width],
        .x_step = x[roles.width],
    };
    if (g.tokens.count * g.n == 0) return;
    const bool wide = wide_rows<T>(tokens, 0, g.x, g.x_step, g.n) &&
                      wide_rows<T>(tokens, 1, g.y, g.y_step, g.n) && wide_slots<T>(g.own);
    with_row_shape<T>(wide, g.n, [&]<int N, int G>() {
      rows_of_tokens<T, N, G><<<row_blocks<G>(g.tokens.count), kRowThreads<G>, 0,
                                static_cast<cudaStream_t>(args.stream)>>>(g);
    });
    cuda_check(cudaGetLastError());
  });
}

// From tokens, input 0, to buffers, output 0; slots and weights are the inputs of these numbers.
template <class T>
void scatter(const KernelArgs& args, const Roles& roles, size_t slots_input, int weights_input) {
  const Signature& s = args.signature;
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const bool weighted = weights_input >= 0;
  const Shape x = in_strides(args, 0), y = out_strides(args, 0);
  const Shape slots = in_strides(args, slots_input);
  const Shape weights = weighted ? in_strides(args, static_cast<size_t>(weights_input)) : slots;
  const auto groups = nest_over<3>(args, roles.group, {x, slots, weights});
  const auto choices = nest_over<3>(args, joined(roles.token, roles.choice), {x, slots, weights});
  const auto rows = nest_over<1>(args, joined(roles.group, roles.slot), {y});
  const Scatter<T> k = {
      .x = args.in[0].as<const T>(),
      .slots = args.in[slots_input].as<const int>(),
      .weights = weighted ? args.in[static_cast<size_t>(weights_input)].as<const T>() : nullptr,
      .y = args.out[0].as<T>(),
      .owners = static_cast<Owner*>(args.workspace),
      .groups = loops_of(groups),
      .choices = loops_of(choices),
      .rows = loops_of(rows),
      .own = slots_of(args, roles, y),
      .all_slots = nest_over<1>(args, roles.slot, {y}).count(),
      .n = width_of(args, roles),
      .x_step = x[roles.width],
      .y_step = y[roles.width],
  };
  if (k.rows.count * k.n == 0) return;
  CLEAVE_ASSERT(k.choices.count < kNobody && k.all_slots <= INT32_MAX, "{} choices of {} in '{}'",
                k.choices.count, k.all_slots, s.text());
  const auto bytes = static_cast<size_t>(k.rows.count) * sizeof(Owner);
  cuda_check(cudaMemsetAsync(k.owners, kNobodyByte, bytes, stream));
  if (k.groups.count * k.choices.count > 0) {
    const auto blocks = static_cast<unsigned>(ceil_div(k.groups.count * k.choices.count, kThreads));
    owners_of_slots<<<blocks, kThreads, 0, stream>>>(k);
    cuda_check(cudaGetLastError());
  }
  const bool wide = wide_rows<T>(groups, 0, k.x, k.x_step, k.n) &&
                    wide_rows<T>(choices, 0, k.x, k.x_step, k.n) &&
                    wide_rows<T>(rows, 0, k.y, k.y_step, k.n);
  with_row_shape<T>(wide, k.n, [&]<int N, int G>() {
    rows_of_slots<T, N, G><<<row_blocks<G>(k.rows.count), kRowThreads<G>, 0, stream>>>(k);
  });
  cuda_check(cudaGetLastError());
}

}  // namespace

void dispatch_cuda(const KernelArgs& args) {
  const Signature& s = args.signature;
  const Roles roles(s.inputs()[0], s.outputs()[0], s.inputs()[1]);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) { scatter<T>(args, roles, 1, -1); });
}

void collect_cuda(const KernelArgs& args) { gather(args); }
void combine_cuda(const KernelArgs& args) { gather(args); }

void combine_backward_cuda(const KernelArgs& args) {
  const Signature& s = args.signature;
  const Roles roles(s.inputs()[0], s.inputs()[1], s.inputs()[2]);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    scatter<T>(args, roles, 2, 3);
    const Shape dx = in_strides(args, 0), y = in_strides(args, 1);
    const auto choices = nest_over<4>(args, factors_of(s.outputs()[1]),
                                      {dx, y, in_strides(args, 2), out_strides(args, 1)});
    const Products<T> p = {
        .dx = args.in[0].as<const T>(),
        .y = args.in[1].as<const T>(),
        .slots = args.in[2].as<const int>(),
        .dweights = args.out[1].as<T>(),
        .choices = loops_of(choices),
        .own = slots_of(args, roles, y),
        .n = width_of(args, roles),
        .dx_step = dx[roles.width],
        .y_step = y[roles.width],
    };
    if (p.choices.count == 0) return;
    const bool wide = wide_rows<T>(choices, 0, p.dx, p.dx_step, p.n) &&
                      wide_rows<T>(choices, 1, p.y, p.y_step, p.n) && wide_slots<T>(p.own);
    with_row_shape<T>(wide, p.n, [&]<int N, int G>() {
      products_of_choices<T, N, G><<<row_blocks<G>(p.choices.count), kRowThreads<G>, 0,
                                     static_cast<cudaStream_t>(args.stream)>>>(p);
    });
    cuda_check(cudaGetLastError());
  });
}

}  // namespace cleave
