#include "kernels/cuda/product_hopper.h"

#include <algorithm>

#include "graph/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

using namespace hopper;  // NOLINT

constexpr int kTall = 128, kDeep = 64;  // rows of a tile, and what is summed at a time
static_assert(kTall == kSummedColumns);
// Blocks of a cluster: their tiles lie one below the other, and share what is copied of b.
constexpr int kCluster = 2;
constexpr int kThreads = 384;            // a warpgroup that copies, and two that multiply
constexpr int kLeft = 24, kTaken = 240;  // registers of theirs, of those that a block begins with
static_assert(128 * (kLeft + 2 * kTaken) <= 168 * kThreads);

// y = a b, in rows: a is [rows, k] and dense along k; b is dense along k, or along y's rows.
struct Call {
  int rows, columns, steps;  // steps: of kDeep
  int pairs, across;         // tiles of a cluster down the rows, and tiles across
  int64_t leading;           // from row to row of y and of `beside`
  const bf16* bias;          // null: none
  bf16* y;
  bf16* beside;  // the sums, of GELU; read, of its slope
  float* sums;   // of the rows of each tile, [tiles down, columns]; null: not wanted
};
struct Maps {
  CUtensorMap a, b;
};

// A tile's place.
struct Place {
  int row, column;
};
// Clusters that work at the same time are to read few rows of a and few of b, which then stay in
// the L2 cache.
__device__ inline Place place_of(const Call& call, int turn, int columns) {
  constexpr int kBand = 8;
  const int band = turn / (kBand * call.across), rest = turn - band * kBand * call.across;
  const int members = min(kBand, call.pairs - band * kBand), column = rest / members;
  return {(band * kBand + rest - column * members) * kCluster * kTall, column * columns};
}

template <int kBroad, bool kAlongB>
struct Block {
  using A = Tile<kTall, kDeep>;
  using B = Tile<kAlongB ? kBroad : kDeep, kAlongB ? kDeep : kBroad>;
  // Of b a block copies a part, for all of the cluster.
  static constexpr int kPart = (kAlongB ? kBroad : kDeep) / kCluster;
  static_assert(kPart * B::kRowBytes % 1024 == 0);
  static constexpr int kStageBytes = A::kBytes + B::kBytes;
  static constexpr int kStages = 210000 / kStageBytes;
  // Of each warpgroup: a row of sums a warp.
  static constexpr int kSumBytes = 2 * 4 * kBroad * 4;
  static constexpr int kBytes = kStages * kStageBytes + 1024 + kSumBytes + (2 * kStages + 2) * 8;
  static_assert(kBytes <= 227 << 10);
};

// Two numbers of a register.
__device__ inline float2 apart(uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}

// 1 / (1 + 2^x).
__device__ inline float fraction(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1 + exp2_of(x)));
  return y;
}
// GELU and its slope (prelude.cuh) in as few instructions as there are: x / (1 + 2^(x (c + a c
// x^2))).
constexpr float kGeluC = -1.5957691216057308 * 1.4426950408889634, kGeluA = 0.044715;
__device__ inline float gelu_of(float x) {
  return x * fraction(x * fmaf(x * x, kGeluA * kGeluC, kGeluC));
}
__device__ inline float gelu_slope_of(float x) {
  constexpr float c = 1.5957691216057308;
  const float square = x * x, s = fraction(x * fmaf(square, kGeluA * kGeluC, kGeluC));
  return fmaf(x * (s * (1 - s)), fmaf(square, 3 * kGeluA * c, c), s);
}

// Where a thread's results are. Of its four rows, q is that of the sums [q / 2] (of rows 64 h and
// on) with i = q % 2 (hopper.cuh); of 32 columns it has eight, once they are transposed.
struct Results {
  const Call& call;
  int row, column;  // the first of all

  __device__ Results(const Call& c, const Place& place)
      : call(c),
        row(place.row + static_cast<int>(threadIdx.x) % 128 / 32 * 16 +
            static_cast<int>(threadIdx.x) % 32 / 4),
        column(place.column) {}
  __device__ int row_of(int q) const { return row + q / 2 * 64 + q % 2 * 8; }
  // Of the 32 from 8 j on.
  __device__ int column_of(int j) const {
    return column + 8 * (j + static_cast<int>(threadIdx.x) % 4);
  }
  __device__ bool there(int q, int j) const {
    return row_of(q) < call.rows && column_of(j) < call.columns;
  }
  __device__ int64_t at(int q, int j) const { return row_of(q) * call.leading + column_of(j); }
};

// x[0]: the sum of one of the eight numbers over the threads of a warp that lie four apart. Which
// one that is; each of these threads has another.
__device__ inline int add_up_rows(float (&x)[8]) {
  int which = 0;
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = (threadIdx.x & 4 * half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float got = __shfl_xor_sync(~0u, upper ? x[i] : x[i + half], 4 * half);
      x[i] = (upper ? x[i + half] : x[i]) + got;
    }
    which += upper ? half : 0;
  }
  return which;
}

// What becomes of a warpgroup's sums. `kept`: [4, kBroad], for sums over rows.
template <int kBroad, Epilogue kEpilogue>
__device__ inline void finish(const Results& results, const float (&sums)[2][kBroad / 2],
                              float* kept) {
  constexpr bool kSlope = kEpilogue == Epilogue::kGeluBackward;
  const Call& call = results.call;
  const int lane = static_cast<int>(threadIdx.x) % 32, quad = lane % 4;
  float* const own_kept = kept + static_cast<int>(threadIdx.x) % 128 / 32 * kBroad;
  if (kSlope && call.sums != nullptr) {
    meet_warpgroup(static_cast<int>(threadIdx.x) / 128);  // those of the tile before are read
  }
#pragma unroll
  for (int j = 0; j < kBroad / 8; j += 4) {
    if (results.column + 8 * j >= call.columns) break;
    uint4 beside[4];
    if constexpr (kSlope) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        beside[q] = make_uint4(0, 0, 0, 0);
        if (!results.there(q, j)) continue;
        beside[q] = __ldcs(reinterpret_cast<const uint4*>(call.beside + results.at(q, j)));
      }
    }
    float2 bias[4];
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      bias[s] = {0, 0};
      const int c = results.column + 8 * (j + s) + 2 * quad;
      if (!kSlope && call.bias != nullptr && c < call.columns) {
        bias[s] = apart(__ldg(reinterpret_cast<const unsigned*>(call.bias + c)));
      }
    }
    float over_rows[8] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      uint32_t x[4], z[4];
      if constexpr (kSlope) {
        z[0] = beside[q].x, z[1] = beside[q].y, z[2] = beside[q].z, z[3] = beside[q].w;
        transpose_quad(z);
      }
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int n = 4 * (j + s) + 2 * (q % 2);
        float low = sums[q / 2][n] + bias[s].x, high = sums[q / 2][n + 1] + bias[s].y;
        if constexpr (kEpilogue == Epilogue::kGelu) {
          z[s] = pair<bf16>(low, high);
          low = gelu_of(low), high = gelu_of(high);
        } else if constexpr (kSlope) {
          const float2 of = apart(z[s]);
          low *= gelu_slope_of(of.x), high *= gelu_slope_of(of.y);
          over_rows[2 * s] += low, over_rows[2 * s + 1] += high;
        }
        x[s] = pair<bf16>(low, high);
      }
      transpose_quad(x);
      if constexpr (kEpilogue == Epilogue::kGelu) transpose_quad(z);
      if (!results.there(q, j)) continue;
      const int64_t at = results.at(q, j);
      *reinterpret_cast<uint4*>(call.y + at) = make_uint4(x[0], x[1], x[2], x[3]);
      if constexpr (kEpilogue == Epilogue::kGelu) {
        __stcs(reinterpret_cast<uint4*>(call.beside + at), make_uint4(z[0], z[1], z[2], z[3]));
      }
    }
    if constexpr (kSlope) {
      if (call.sums == nullptr) continue;
      const int s = add_up_rows(over_rows);
      own_kept[8 * (j + s / 2) + 2 * quad + s % 2] = over_rows[0];
    }
  }
  if (!kSlope || call.sums == nullptr) return;
  meet_warpgroup(static_cast<int>(threadIdx.x) / 128);
  const int tile = (results.row - results.row % kTall) / kTall;
  for (int c = static_cast<int>(threadIdx.x) % 128; c < kBroad; c += 128) {
    if (results.column + c >= call.columns || tile * kTall >= call.rows) break;
    call.sums[static_cast<int64_t>(tile) * call.columns + results.column + c] =
        (kept[c] + kept[kBroad + c]) + (kept[2 * kBroad + c] + kept[3 * kBroad + c]);
  }
}

template <int kBroad, bool kAlongB, Epilogue kEpilogue>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    multiply(const __grid_constant__ Maps maps, const Call call) {
  using Own = Block<kBroad, kAlongB>;
  using A = typename Own::A;
  using B = typename Own::B;
  constexpr int kStages = Own::kStages;
  extern __shared__ unsigned char raw[];
  unsigned char* const stages = aligned_shared(raw);
  auto* const kept = reinterpret_cast<float*>(stages + kStages * Own::kStageBytes);
  auto* const full =
      reinterpret_cast<Barrier*>(stages + kStages * Own::kStageBytes + Own::kSumBytes);
  Barrier *const empty = full + kStages, *const turns_of = empty + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      full[i].init(1);
      empty[i].init(4 * kCluster);  // the warps of the warpgroup whose turn it is, in all blocks
    }
    for (int i = 0; i < 2; ++i) turns_of[i].init(4);  // the warps of the other one
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
      const Place place = place_of(call, turn, kBroad);
      for (int step = 0; step < call.steps; ++step, ring.next()) {
        unsigned char* const to_a = stages + ring.stage * Own::kStageBytes;
        unsigned char* const to_b = to_a + A::kBytes + rank * Own::kPart * B::kRowBytes;
        Barrier& there = full[ring.stage];
        empty[ring.stage].wait(ring.parity ^ 1);
        there.expect(Own::kStageBytes);
        load_box(to_a, maps.a, there, step * kDeep, place.row + rank * kTall, 0, 0);
        constexpr uint16_t kAll = (1 << kCluster) - 1;
        if constexpr (kAlongB) {
          load_box_to(kAll, to_b, maps.b, there, step * kDeep, place.column + rank * Own::kPart, 0,
                      0);
        } else {
#pragma unroll
          for (int c = 0; c < B::kChunks; ++c) {
            load_box_to(kAll, to_b + c * B::kChunkBytes, maps.b, there,
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
  int mine = 1;  // the warpgroup whose turn it is
  uint32_t turn_parity = warpgroup == 1 ? 1 : 0;
  for (int turn = first; turn < turns; turn += clusters, mine ^= 3) {
    if (mine != warpgroup) {
      ring.skip(call.steps);
      continue;
    }
    Place place = place_of(call, turn, kBroad);
    place.row += rank * kTall;
    if constexpr (kEpilogue == Epilogue::kGeluBackward) {
      // What is beside is in the L2 cache when it is read.
      const int row = place.row + static_cast<int>(threadIdx.x) % 128;
      const bf16* const from = call.beside + row * call.leading + place.column;
      for (int c = 0; c < kBroad && row < call.rows && place.column + c < call.columns; c += 64) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + c));
      }
    }
    // When the other one has seen all stages of its turn: else the parity of a stage's barrier
    // could be that of a fill before.
    turns_of[warpgroup - 1].wait(turn_parity);
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
    if (speaks) turns_of[2 - warpgroup].arrive();
    wait_products<0>();
    hold(sums[0]);
    hold(sums[1]);
    release(ring.last());
    finish<kBroad, kEpilogue>(Results(call, place), sums, kept + (warpgroup - 1) * 4 * kBroad);
  }
  // The other block arrives at this one's barriers until it is done.
  meet_cluster();
}

template <int kBroad, bool kAlongB, Epilogue kEpilogue>
void launch(const Product& p, const ProductData& data, int multiprocessors, cudaStream_t stream) {
  using Own = Block<kBroad, kAlongB>;
  const auto of = [](const void* x) { return const_cast<bf16*>(static_cast<const bf16*>(x)); };
  const Call call = {.rows = static_cast<int>(p.n),
                     .columns = static_cast<int>(p.m),
                     .steps = static_cast<int>(ceil_div(p.k, kDeep)),
                     .pairs = static_cast<int>(ceil_div(p.n, kCluster * kTall)),
                     .across = static_cast<int>(ceil_div(p.m, kBroad)),
                     .leading = p.d.leading,
                     .bias = p.has_bias ? of(data.bias) : nullptr,
                     .y = of(data.d),
                     .beside = of(data.aux),
                     .sums = p.sums ? data.sums : nullptr};
  const auto map = [&](const void* matrix, int64_t width, int64_t rows, int64_t leading, int box) {
    return tensor_map(DType::kBF16, of(matrix), {width, rows, 1, 1},
                      {leading, rows * leading, rows * leading}, box, 64);
  };
  const Maps maps = {map(data.b, p.k, p.n, p.b.leading, kTall),
                     kAlongB ? map(data.a, p.k, p.m, p.a.leading, Own::kPart)
                             : map(data.a, p.m, p.k, p.a.leading, Own::kPart)};
  auto* const kernel = multiply<kBroad, kAlongB, kEpilogue>;
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
      return launch<kBroad, true, Epilogue::kNone>(p, data, multiprocessors, stream);
    case Epilogue::kGelu:
      return launch<kBroad, true, Epilogue::kGelu>(p, data, multiprocessors, stream);
    case Epilogue::kGeluBackward:
      return launch<kBroad, false, Epilogue::kGeluBackward>(p, data, multiprocessors, stream);
  }
}

}  // namespace

size_t own_kernels(const Product& p, int major) {
  if (major != 9 || p.in != DType::kBF16 || p.out != DType::kBF16 || p.b_type() != p.in) return 0;
  if (p.batch != 1 || p.has_c || p.alignment != 16 || p.transpose_b || p.m % 8 != 0) return 0;
  const bool slope = p.epilogue == Epilogue::kGeluBackward;
  if (p.transpose_a == slope || (slope && p.has_bias)) return 0;
  // Where parts of sums are kept.
  if (p.sums && (!slope || ceil_div(p.n, kTall) * p.m * 4 > kProductWorkspace)) return 0;
  // Tiles are counted, and rows found, in 32 bits.
  if (std::max({p.m, p.n, p.k}) > INT32_MAX / 2 || p.m * p.n / kTall > INT32_MAX) return 0;
  return 2;
}

void run_own_kernel(const Product& p, const ProductData& data, size_t which, int multiprocessors,
                    cudaStream_t stream) {
  CLEAVE_ASSERT(which < 2, "there is no kernel {}", which);
  which == 0 ? launch<192>(p, data, multiprocessors, stream)
             : launch<128>(p, data, multiprocessors, stream);
}

void add_own_sums(const KernelArgs& args, const float* sums, int64_t parts) {
  const auto n = static_cast<size_t>(args.signature.outputs()[1][0][0]);
  add_partials(args, sums, parts, args.extents[n].local, 1, n);
}

}  // namespace cleave
