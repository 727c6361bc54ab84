#include "kernels/cuda/product_hopper.h"

#include <algorithm>

#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/product_finish.cuh"
#include "kernels/cuda/product_gated.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

using namespace own_product;  // NOLINT

constexpr int kDeep = 64;  // what is summed at a time
// Blocks of a cluster: their tiles lie one below the other, and share what is copied of b.
constexpr int kCluster = 2;
constexpr int kThreads = 384;            // a warpgroup that copies, and two that multiply
constexpr int kLeft = 24, kTaken = 240;  // registers of theirs, of those that a block begins with
static_assert(128 * (kLeft + 2 * kTaken) <= 168 * kThreads);

// Clusters that work at the same time are to read few rows of a and few of b, which then stay in
// the L2 cache.
__device__ inline Place place_of(const Call& call, int turn, int columns) {
  constexpr int kBand = 8;
  const int band = turn / (kBand * call.across), rest = turn - band * kBand * call.across;
  const int members = min(kBand, call.pairs - band * kBand), column = rest / members;
  return {(band * kBand + rest - column * members) * kCluster * kTall, column * columns};
}

template <int kBroad, Epilogue kEpilogue>
struct FinishOf {
  using Type = Finish<kBroad, kEpilogue>;
};
template <int kBroad>
struct FinishOf<kBroad, Epilogue::kSwiglu> {
  using Type = GatedFinish<kBroad, false>;
};
template <int kBroad>
struct FinishOf<kBroad, Epilogue::kSwigluBackward> {
  using Type = GatedFinish<kBroad, true>;
};

template <int kBroad, Epilogue kEpilogue>
struct Block {
  using Finish = typename FinishOf<kBroad, kEpilogue>::Type;
  static constexpr bool kAlongB = !is_slope(kEpilogue);
  using A = Tile<kTall, kDeep>;
  using B = Tile<kAlongB ? kBroad : kDeep, kAlongB ? kDeep : kBroad>;
  // Of b a block copies a part, for all of the cluster; of SwiGLU's two, the same rows of one.
  static constexpr bool kTwo = kEpilogue == Epilogue::kSwiglu;
  static constexpr int kPart = (kAlongB ? kBroad : kDeep) / kCluster;
  static_assert(kPart * B::kRowBytes % 1024 == 0);
  static_assert(!kTwo || (kCluster == 2 && kPart == Finish::kColumns));
  static constexpr int kRoomBytes = kWarps * Finish::kRoomBytes, kBarrierBytes = 512;
  static constexpr int kSumBytes = kWarps * Finish::kSumBytes;
  // What the stages have to leave: also to begin at a multiple of 1024, and for barriers.
  static constexpr int kOther = 1024 + kRoomBytes + kSumBytes + kBarrierBytes;
  static constexpr int kStageBytes = A::kBytes + B::kBytes;
  static constexpr int kStages = ((227 << 10) - kOther) / kStageBytes;
  static constexpr int kBarriersThere = kWarps * Finish::kBarriers;
  static_assert(8 * (2 * kStages + 2 + kBarriersThere) <= kBarrierBytes);
  static constexpr int kBytes = kStages * kStageBytes + kOther;
};

template <int kBroad, Epilogue kEpilogue>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    multiply(const __grid_constant__ Maps maps, const Call call) {
  using Own = Block<kBroad, kEpilogue>;
  using A = typename Own::A;
  using B = typename Own::B;
  constexpr bool kAlongB = Own::kAlongB;
  constexpr int kStages = Own::kStages, kColumns = Own::Finish::kColumns;
  extern __shared__ unsigned char raw[];
  unsigned char* const stages = aligned_shared(raw);
  unsigned char* const rooms = stages + kStages * Own::kStageBytes;
  auto* const kept = reinterpret_cast<float*>(rooms + Own::kRoomBytes);
  auto* const full = reinterpret_cast<Barrier*>(rooms + Own::kRoomBytes + Own::kSumBytes);
  Barrier *const empty = full + kStages, *const may_multiply = empty + kStages,
                 *const there = may_multiply + 2;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      full[i].init(1);
      empty[i].init(4 * kCluster);  // the warps of the warpgroup whose turn it is, in all blocks
    }
    for (int i = 0; i < 2; ++i) may_multiply[i].init(4);  // the warps of the other warpgroup
    for (int i = 0; i < Own::kBarriersThere; ++i) there[i].init(1);
    barriers_ready();
  }
  meet_cluster();

  const int warpgroup =
      __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);  // for all the warp
  const int rank = static_cast<int>(rank_in_cluster());
  const int first = static_cast<int>(blockIdx.x) / kCluster;
  const int clusters = static_cast<int>(gridDim.x) / kCluster, turns = call.pairs * call.across;
  Ring<kStages> ring;
  if (warpgroup == 0) {
    leave_registers<kLeft>();
    if (threadIdx.x != 0) return;
    for (int turn = first; turn < turns; turn += clusters) {
      const Place place = place_of(call, turn, kColumns);
      for (int step = 0; step < call.steps; ++step, ring.next()) {
        unsigned char* const to_a = stages + ring.stage * Own::kStageBytes;
        unsigned char* const to_b = to_a + A::kBytes + rank * Own::kPart * B::kRowBytes;
        Barrier& filled = full[ring.stage];
        empty[ring.stage].wait(ring.parity ^ 1);
        filled.expect(Own::kStageBytes);
        load_box(to_a, maps.a, filled, step * kDeep, place.row + rank * kTall, 0, 0);
        constexpr uint16_t kAll = (1 << kCluster) - 1;
        if constexpr (kAlongB) {
          const CUtensorMap& b = Own::kTwo && rank > 0 ? maps.other_b : maps.b;
          load_box_to(kAll, to_b, b, filled, step * kDeep,
                      place.column + (Own::kTwo ? 0 : rank * Own::kPart), 0, 0);
        } else {
#pragma unroll
          for (int c = 0; c < B::kChunks; ++c) {
            load_box_to(kAll, to_b + c * B::kChunkBytes, maps.b, filled,
                        place.column + c * B::kChunk, step * kDeep + rank * Own::kPart, 0, 0);
          }
        }
      }
    }
    return;
  }

  take_registers<kTaken>();
  const uint32_t base = A::base(stages);
  const bool speaks = threadIdx.x % 32 == 0;
  const auto release = [&](int stage) {
    if (!speaks) return;
#pragma unroll
    for (uint32_t block = 0; block < kCluster; ++block) empty[stage].arrive_at(block);
  };
  typename Own::Finish finish(maps, call, rooms, kept, there);
  int next = 1;  // the warpgroup that takes the next tile: 1, 2, 1, ...
  uint32_t turn_parity = warpgroup == 1 ? 1 : 0;
  for (int turn = first; turn < turns; turn += clusters, next = 3 - next) {
    if (next != warpgroup) {
      ring.skip(call.steps);
      continue;
    }
    Place place = place_of(call, turn, kColumns);
    place.row += rank * kTall;
    finish.begin(place);
    // When the other one has seen all stages of its turn: else the parity of a stage's barrier
    // could be that of a fill before.
    may_multiply[warpgroup - 1].wait(turn_parity);
    turn_parity ^= 1;
    float sums[2][kBroad / 2];
    for (int step = 0; step < call.steps; ++step, ring.next()) {
      full[ring.stage].wait(ring.parity);
      const uint32_t at = base + static_cast<uint32_t>(ring.stage * (Own::kStageBytes / 16));
      begin_products();
#pragma unroll
      for (int d = 0; d < kDeep / 16; ++d) {
        const uint32_t of_b = at + A::kBytes / 16;
        const uint64_t b = kAlongB ? B::along(of_b, d) : B::across(of_b, d);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          product<bf16, kAlongB ? 0 : 1, kBroad / 2>(
              sums[h], A::along(at + static_cast<uint32_t>(h * 64 * A::kRowBytes / 16), d), b,
              step + d > 0);
        }
      }
      end_products();
      wait_products<1>();
      if (step > 0) release(ring.last());
    }
    if (speaks) may_multiply[2 - warpgroup].arrive();  // the other one
    wait_products<0>();
    hold(sums[0]);
    hold(sums[1]);
    release(ring.last());
    finish.finish(sums);
  }
  finish.end();
  // The other block arrives at this one's barriers until it is done.
  meet_cluster();
}

template <int kBroad, Epilogue kEpilogue>
void launch_one(const Product& p, const ProductData& data, int multiprocessors,
                cudaStream_t stream) {
  using Own = Block<kBroad, kEpilogue>;
  const Call call = {.rows = static_cast<int>(p.n),
                     .columns = static_cast<int>(p.m),
                     .steps = static_cast<int>(ceil_div(p.k, kDeep)),
                     .pairs = static_cast<int>(ceil_div(p.n, kCluster * kTall)),
                     .across = static_cast<int>(ceil_div(p.m, Own::Finish::kColumns)),
                     .bias = p.has_bias ? static_cast<const bf16*>(data.bias) : nullptr,
                     .sums = p.sums ? data.sums : nullptr};
  const auto map = [&](const void* matrix, int64_t width, int64_t rows, int64_t leading, int box,
                       int chunk = 64) {
    if (matrix == nullptr) return CUtensorMap{};
    return tensor_map(DType::kBF16, const_cast<void*>(matrix), {width, rows, 1, 1},
                      {leading, rows * leading, rows * leading}, box, chunk);
  };
  const auto result = [&](void* matrix, int64_t leading) {
    return map(matrix, p.m, p.n, leading, kPieceRows, Own::Finish::kPieceColumns);
  };
  // In rows the product's second matrix comes first.
  const auto second = [&](const void* matrix) {
    return Own::kAlongB ? map(matrix, p.k, p.m, p.a.leading, Own::kPart)
                        : map(matrix, p.m, p.k, p.a.leading, Own::kPart);
  };
  const int64_t beside = is_gated(kEpilogue) ? p.beside : p.d.leading;
  const Maps maps = {map(data.b, p.k, p.n, p.b.leading, kTall),
                     second(data.a),
                     result(data.d, p.d.leading),
                     result(kEpilogue == Epilogue::kNone ? nullptr : data.aux, beside),
                     second(Own::kTwo ? data.other.a : nullptr),
                     result(data.other.d, p.d.leading),
                     result(data.other.aux, beside)};
  auto* const kernel = multiply<kBroad, kEpilogue>;
  cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Own::kBytes));
  const int blocks = std::min(call.pairs * call.across, multiprocessors / kCluster) * kCluster;
  kernel<<<static_cast<unsigned>(blocks), kThreads, Own::kBytes, stream>>>(maps, call);
  cuda_check(cudaGetLastError());
}

template <int kBroad>
void launch(const Product& p, const ProductData& data, int multiprocessors, cudaStream_t stream) {
  switch (p.epilogue) {
    case Epilogue::kNone:
      return launch_one<kBroad, Epilogue::kNone>(p, data, multiprocessors, stream);
    case Epilogue::kGelu:
      return launch_one<kBroad, Epilogue::kGelu>(p, data, multiprocessors, stream);
    case Epilogue::kGeluBackward:
      return launch_one<kBroad, Epilogue::kGeluBackward>(p, data, multiprocessors, stream);
    case Epilogue::kSwiglu:
      return launch_one<kBroad, Epilogue::kSwiglu>(p, data, multiprocessors, stream);
    case Epilogue::kSwigluBackward:
      return launch_one<kBroad, Epilogue::kSwigluBackward>(p, data, multiprocessors, stream);
  }
}

}  // namespace

size_t own_kernels(const Product& p, int major) {
  if (major != 9 || p.in != DType::kBF16 || p.out != DType::kBF16 || p.b_type() != p.in) return 0;
  // Columns of the result, and what is added to them, go two to a register.
  if (p.batch != 1 || p.has_c || p.alignment != 16 || p.transpose_b || p.m % 8 != 0) return 0;
  const bool slope = is_slope(p.epilogue);
  if (p.transpose_a == slope || ((slope || is_gated(p.epilogue)) && p.has_bias)) return 0;
  // Where parts of sums are kept.
  if (p.sums &&
      (p.epilogue != Epilogue::kGeluBackward || ceil_div(p.n, kTall) * p.m * 4 > kProductWorkspace))
    return 0;
  // Tiles are counted, and rows found, in 32 bits.
  if (std::max({p.m, p.n, p.k}) > INT32_MAX / 2 || p.m * p.n / kTall > INT32_MAX) return 0;
  return 2;
}

void run_own_kernel(const Product& p, const ProductData& data, size_t which, int multiprocessors,
                    cudaStream_t stream) {
  CLEAVE_ASSERT(which < 2, "there is no kernel {}", which);
  if (which == 0) {
    launch<192>(p, data, multiprocessors, stream);
  } else {
    launch<128>(p, data, multiprocessors, stream);
  }
}

void add_own_sums(const KernelArgs& args, const float* sums, int64_t parts) {
  const auto n = static_cast<size_t>(args.signature.outputs()[1][0][0]);
  add_partials(args, sums, parts, args.extents[n].local, 1, n);
}

}  // namespace cleave
