// What becomes of the sums of our products (product_hopper.cu) on their way to memory: a bias, GELU
// or its slope. SwiGLU is in product_gated.cuh.
#pragma once

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/products.h"

namespace cleave::own_product {

using namespace hopper;  // NOLINT

constexpr int kTall = 128;  // rows of a tile
static_assert(kTall == kSummedColumns);
constexpr int kWarps = 8;  // that multiply: two warpgroups

// y = a b, in rows: a is [rows, k] and dense along k; b is dense along k, or along y's rows. Of
// SwiGLU there are two b, and what is made of both products.
struct Call {
  int rows, columns, steps;  // of a tile's sums, so many steps
  int pairs, across;         // tiles of a cluster down the rows, and tiles across
  const bf16* bias;          // null: none
  float* sums;               // of the rows of each tile, [tiles down, columns]; null: not wanted
};
struct Maps {
  CUtensorMap a, b;
  CUtensorMap y;       // the result
  CUtensorMap beside;  // the sums, of GELU, and of SwiGLU's gate; their backwards read them there
  // Of SwiGLU: the second b; of its backward, the second result; and the sums of what the gate lets
  // through.
  CUtensorMap other_b, other_y, other_beside;
};

// A tile's place.
struct Place {
  int row, column;
};

constexpr int kPieceRows = 16;  // a warp's results go to memory piece by piece

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
// small, as by an approximate tanh they are not: x / (1 + 2^(x (c + a c x^2))).
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
template <int kBroad, Epilogue kEpilogue>
class Finish {
 public:
  static constexpr int kColumns = kBroad;  // of a tile's results
  static constexpr int kPieceColumns = 64, kPieceBytes = 2 * kPieceRows * kPieceColumns;
  // Rooms of a warp, for a piece each: one; two for results and two for the sums of GELU; three for
  // what is read, where its slope's results follow.
  static constexpr bool kSlope = kEpilogue == Epilogue::kGeluBackward;
  static constexpr int kRooms = kEpilogue == Epilogue::kGelu ? 4 : kSlope ? 3 : 1;
  static constexpr int kRoomBytes = kRooms * kPieceBytes;
  static constexpr int kBarriers = kSlope ? kRooms : 0;      // of a warp
  static constexpr int kSumBytes = kSlope ? kBroad * 4 : 0;  // a row of sums a warp

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

}  // namespace cleave::own_product
