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
constexpr int kThreads = 384;            // a warpgroup that copies, and two that multiply,
constexpr int kWarps = 8;                // of so many warps
constexpr int kLeft = 24, kTaken = 240;  // registers of theirs, of those that a block begins with
static_assert(128 * (kLeft + 2 * kTaken) <= 168 * kThreads);

// y = a b, in rows: a is [rows, k] and dense along k; b is dense along k, or along y's rows.
struct Call {
  int rows, columns, steps;  // steps: of kDeep
  int pairs, across;         // tiles of a cluster down the rows, and tiles across
  const bf16* bias;          // null: none
  float* sums;               // of the rows of each tile, [tiles down, columns]; null: not wanted
};
struct Maps {
  CUtensorMap a, b, y;
  CUtensorMap beside;  // the sums, of GELU; read, of its slope
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

// What a warp's results pass through on their way to memory: a piece at a time.
constexpr int kPieceRows = 16, kPieceColumns = 64, kPieceBytes = 2 * kPieceRows * kPieceColumns;

template <int kBroad, bool kAlongB, Epilogue kEpilogue>
struct Block {
  using A = Tile<kTall, kDeep>;
  using B = Tile<kAlongB ? kBroad : kDeep, kAlongB ? kDeep : kBroad>;
  // Of b a block copies a part, for all of the cluster.
  static constexpr int kPart = (kAlongB ? kBroad : kDeep) / kCluster;
  static_assert(kPart * B::kRowBytes % 1024 == 0);
  // Rooms of a warp, for a piece each: one; two for results and two for the sums of GELU; three for
  // what is read, where its slope's results follow.
  static constexpr bool kSlope = kEpilogue == Epilogue::kGeluBackward;
  static constexpr int kRooms = kEpilogue == Epilogue::kGelu ? 4 : kSlope ? 3 : 1;
  static constexpr int kRoomBytes = kWarps * kRooms * kPieceBytes, kBarrierBytes = 512;
  static constexpr int kSumBytes = kSlope ? kWarps * kBroad * 4 : 0;  // a row of sums a warp
  // What the stages have to leave: also to begin at a multiple of 1024, and for barriers.
  static constexpr int kOther = 1024 + kRoomBytes + kSumBytes + kBarrierBytes;
  static constexpr int kStageBytes = A::kBytes + B::kBytes;
  static constexpr int kStages = ((227 << 10) - kOther) / kStageBytes;
  static constexpr int kBarriers = 2 * kStages + 2 + (kSlope ? kWarps * kRooms : 0);
  static_assert(8 * kBarriers <= kBarrierBytes);
  static constexpr int kBytes = kStages * kStageBytes + kOther;
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
// GELU and its slope (prelude.cuh) in few instructions, and as exact as f32 is where they are
// small, as by an approximate tanh they are not: x / (1 + 2^(x (c + a c
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

// What becomes of a warpgroup's sums, tile after tile. A warp's pieces are those of its rows, 64
// columns at a time, first of the upper half of the tile, then of the lower one.
template <class Own, int kBroad, Epilogue kEpilogue>
class Finish {
 public:
  // `kept`: [kWarps, kBroad], for sums over rows; `there`: a barrier for each room, of GELU's
  // slope.
  __device__ Finish(const Maps& maps, const Call& call, unsigned char* rooms, float* kept,
                    Barrier* there)
      : maps_(maps),
        call_(call),
        rooms_(rooms + warp() * kRooms * kPieceBytes),
        kept_(kept),
        there_(there + warp() * kRooms) {}

  // Of the tile that is to be finished next: fetches what stands beside it, or its bias.
  __device__ void begin(const Place& place) {
    row_ = place.row + warp() % 4 * kPieceRows;
    column_ = place.column;
    pieces_ = 2 * min(kBroad / kPieceColumns,
                      (call_.columns - column_ + kPieceColumns - 1) / kPieceColumns);
    if constexpr (kSlope) {
      if (speaks()) {
        stores_read();
        for (int i = 0; i < min(kRooms, pieces_); ++i) fetch(i);
      }
    } else if (call_.bias != nullptr) {
#pragma unroll
      for (int i = 0; i < kBroad / 64; ++i) {
        const int column = column_ + 64 * i + 2 * lane();
        bias_[i] = column < call_.columns
                       ? __ldg(reinterpret_cast<const uint32_t*>(call_.bias + column))
                       : 0;
      }
    }
    __syncwarp();
  }

  __device__ void finish(const float (&sums)[2][kBroad / 2]) {
    if (kSlope && call_.sums != nullptr) meet();  // those of the tile before are read
#pragma unroll
    for (int chunk = 0; chunk < kBroad / kPieceColumns; ++chunk) {
      if (2 * chunk >= pieces_) break;
      float2 bias[8];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        // That of columns 8 n, ... of the chunk, two a lane.
        bias[n] = kSlope ? float2{0, 0} : apart(__shfl_sync(~0u, bias_[chunk], 4 * n + lane() % 4));
      }
      float over_rows[2][8] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int piece = 2 * chunk + half;
        const uint32_t room = enter(piece);
        // Of 16 rows and columns: matrices below each other, then beside each other.
        const auto at = [&](int s) {
          return room + static_cast<uint32_t>(16 * ((2 * s + lane() / 16) ^ lane() % 8));
        };
        // What is beside is read so far ahead, for more to do while it comes: as registers allow.
        constexpr int kAhead = kBroad == 128 ? 4 : 1;
        uint32_t z[4][4];
#pragma unroll
        for (int s = 0; kSlope && s < kAhead; ++s) load_matrices(z[s], at(s));
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          if (kSlope && s > 0 && s + kAhead <= 4)
            load_matrices(z[s + kAhead - 1], at(s + kAhead - 1));
          uint32_t x[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int n = 2 * s + i / 2, from = 4 * (8 * chunk + n) + 2 * (i % 2);
            float low = sums[half][from] + bias[n].x, high = sums[half][from + 1] + bias[n].y;
            if constexpr (kEpilogue == Epilogue::kGelu) {
              z[s][i] = pair<bf16>(low, high);
              low = gelu_of(low), high = gelu_of(high);
            } else if constexpr (kSlope) {
              const float2 of = apart(z[s][i]);
              low *= gelu_slope_of(of.x), high *= gelu_slope_of(of.y);
              over_rows[n / 4][n % 4 * 2] += low, over_rows[n / 4][n % 4 * 2 + 1] += high;
            }
            x[i] = pair<bf16>(low, high);
          }
          store_matrices(at(s), x);
          if constexpr (kEpilogue == Epilogue::kGelu) store_matrices(at(s) + kPieceBytes, z[s]);
        }
        leave(piece);
      }
      if constexpr (kSlope) {
        if (call_.sums == nullptr) continue;
        float* const own = kept_ + warp() * kBroad;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int s = add_up_rows(over_rows[i]);
          own[8 * (8 * chunk + 4 * i + s / 2) + 2 * (lane() % 4) + s % 2] = over_rows[i][0];
        }
      }
    }
    if (kSlope && call_.sums != nullptr) write_sums();
  }

  // What is in the rooms is read.
  __device__ void end() const {
    if (speaks()) stores_read();
  }

 private:
  static constexpr bool kSlope = Own::kSlope;
  static constexpr int kRooms = Own::kRooms;

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ bool speaks() { return lane() == 0; }
  static __device__ void meet() { meet_warpgroup(static_cast<int>(threadIdx.x) / 128); }

  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32 % kWarps; }
  __device__ int row_of(int piece) const { return row_ + piece % 2 * (kTall / 2); }
  // By one thread, when what was in the room is read.
  __device__ void fetch(int piece) {
    const int room = (first_room_ + piece) % kRooms;
    there_[room].expect(kPieceBytes);
    load_box(rooms_ + room * kPieceBytes, maps_.beside, there_[room],
             column_ + piece / 2 * kPieceColumns, row_of(piece), 0, 0);
  }
  __device__ int room_of(int piece) const {
    if constexpr (kSlope) return (first_room_ + piece) % kRooms;
    return kRooms == 1 ? 0 : piece % 2 * 2;
  }
  // The address of this lane's row of the first matrices in the piece's room, which is free now or
  // has what was fetched. With what finish() adds it is Tile::place, in fewer instructions.
  __device__ uint32_t enter(int piece) {
    const int room = room_of(piece);
    if constexpr (kSlope) {
      there_[room].wait(parities_ >> room & 1);
      parities_ ^= 1u << room;
    } else {
      if (speaks()) stores_read<kRooms == 1 ? 0 : 1>();
      __syncwarp();
    }
    return shared_address(rooms_ + room * kPieceBytes) + static_cast<uint32_t>(lane() % 16 * 128);
  }
  // Sends what is in it to memory.
  __device__ void leave(int piece) {
    shared_written();
    __syncwarp();
    if (speaks()) {
      const unsigned char* const from = rooms_ + room_of(piece) * kPieceBytes;
      const int column = column_ + piece / 2 * kPieceColumns, row = row_of(piece);
      store_box(maps_.y, from, column, row, 0, 0);
      if constexpr (kEpilogue == Epilogue::kGelu) {
        store_box(maps_.beside, from + kPieceBytes, column, row, 0, 0);
      }
      end_stores();
      if constexpr (kSlope) {
        // Into the room of the piece before this one.
        const int next = piece - 1 + kRooms;
        if (piece > 0 && next < pieces_) {
          stores_read<1>();
          fetch(next);
        }
      }
    }
    __syncwarp();
    if (kSlope && piece == pieces_ - 1) first_room_ = (first_room_ + pieces_) % kRooms;
  }
  __device__ void write_sums() const {
    meet();
    const int tile = row_ / kTall;
    const float* const kept = kept_ + warp() / 4 * 4 * kBroad;
    for (int c = static_cast<int>(threadIdx.x) % 128; c < kBroad; c += 128) {
      if (column_ + c >= call_.columns || tile * kTall >= call_.rows) break;
      call_.sums[static_cast<int64_t>(tile) * call_.columns + column_ + c] =
          (kept[c] + kept[kBroad + c]) + (kept[2 * kBroad + c] + kept[3 * kBroad + c]);
    }
  }

  const Maps& maps_;
  const Call& call_;
  unsigned char* rooms_;
  float* kept_;
  Barrier* there_;
  uint32_t parities_ = 0;            // of the next phase of each room's barrier
  uint32_t bias_[kBroad / 64] = {};  // of columns 64 i + 2 lane, ...
  int first_room_ = 0, row_ = 0, column_ = 0, pieces_ = 0;
};

template <int kBroad, bool kAlongB, Epilogue kEpilogue>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    multiply(const __grid_constant__ Maps maps, const Call call) {
  using Own = Block<kBroad, kAlongB, kEpilogue>;
  using A = typename Own::A;
  using B = typename Own::B;
  constexpr int kStages = Own::kStages;
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
    for (int i = 0; Own::kSlope && i < kWarps * Own::kRooms; ++i) there[i].init(1);
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
        Barrier& filled = full[ring.stage];
        empty[ring.stage].wait(ring.parity ^ 1);
        filled.expect(Own::kStageBytes);
        load_box(to_a, maps.a, filled, step * kDeep, place.row + rank * kTall, 0, 0);
        constexpr uint16_t kAll = (1 << kCluster) - 1;
        if constexpr (kAlongB) {
          load_box_to(kAll, to_b, maps.b, filled, step * kDeep, place.column + rank * Own::kPart, 0,
                      0);
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
  Finish<Own, kBroad, kEpilogue> finish(maps, call, rooms, kept, there);
  int next = 1;  // the warpgroup that takes the next tile: 1, 2, 1, ...
  uint32_t turn_parity = warpgroup == 1 ? 1 : 0;
  for (int turn = first; turn < turns; turn += clusters, next = 3 - next) {
    if (next != warpgroup) {
      ring.skip(call.steps);
      continue;
    }
    Place place = place_of(call, turn, kBroad);
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

template <int kBroad, bool kAlongB, Epilogue kEpilogue>
void launch_one(const Product& p, const ProductData& data, int multiprocessors,
                cudaStream_t stream) {
  using Own = Block<kBroad, kAlongB, kEpilogue>;
  const Call call = {.rows = static_cast<int>(p.n),
                     .columns = static_cast<int>(p.m),
                     .steps = static_cast<int>(ceil_div(p.k, kDeep)),
                     .pairs = static_cast<int>(ceil_div(p.n, kCluster * kTall)),
                     .across = static_cast<int>(ceil_div(p.m, kBroad)),
                     .bias = p.has_bias ? static_cast<const bf16*>(data.bias) : nullptr,
                     .sums = p.sums ? data.sums : nullptr};
  const auto map = [&](const void* matrix, int64_t width, int64_t rows, int64_t leading, int box) {
    return tensor_map(DType::kBF16, const_cast<void*>(matrix), {width, rows, 1, 1},
                      {leading, rows * leading, rows * leading}, box, 64);
  };
  const auto result = [&](void* matrix) { return map(matrix, p.m, p.n, p.d.leading, kPieceRows); };
  // In rows the product's second matrix comes first.
  const Maps maps = {map(data.b, p.k, p.n, p.b.leading, kTall),
                     kAlongB ? map(data.a, p.k, p.m, p.a.leading, Own::kPart)
                             : map(data.a, p.m, p.k, p.a.leading, Own::kPart),
                     result(data.d),
                     kEpilogue == Epilogue::kNone ? CUtensorMap{} : result(data.aux)};
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
      return launch_one<kBroad, true, Epilogue::kNone>(p, data, multiprocessors, stream);
    case Epilogue::kGelu:
      return launch_one<kBroad, true, Epilogue::kGelu>(p, data, multiprocessors, stream);
    case Epilogue::kGeluBackward:
      return launch_one<kBroad, false, Epilogue::kGeluBackward>(p, data, multiprocessors, stream);
  }
}

}  // namespace

size_t own_kernels(const Product& p, int major) {
  if (major != 9 || p.in != DType::kBF16 || p.out != DType::kBF16 || p.b_type() != p.in) return 0;
  // Columns of the result, and what is added to them, go two to a register.
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
