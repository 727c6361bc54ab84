// What becomes of the sums of our products (product_hopper.cu) with SwiGLU behind them: of two
// products SwiGLU beside both, or of one the gradients of SwiGLU's operands.
#pragma once

#include "kernels/cuda/product_finish.cuh"

namespace cleave::own_product {

// x / (1 + e^-x) is x times this.
__device__ inline float sigmoid_of(float x) { return fraction(-1.4426950408889634f * x); }

// Of a warpgroup's sums, tile after tile: of SwiGLU [128, kBroad / 2] of the gate, and as many of
// what it lets through beside them; of its backward [128, kBroad] of the gradient of its result. A
// warp's pieces are those of its rows, 32 columns at a time, first of the upper half of the tile,
// then of the lower one.
template <int kBroad, bool kBackward>
class GatedFinish {
 public:
  static constexpr int kColumns = kBackward ? kBroad : kBroad / 2;
  static constexpr int kPieceColumns = 32, kPieceBytes = 2 * kPieceRows * kPieceColumns;
  static_assert(kColumns % kPieceColumns == 0);

 private:
  // Of a piece there are the gate, what it lets through and the result, which have two rooms in
  // turns; or the first two, which are read, and whose gradients take their places.
  static constexpr int kTensors = kBackward ? 2 : 3;
  static constexpr int kRooms = kBackward ? 3 : 2, kOneRoom = kTensors * kPieceBytes;

 public:
  static constexpr int kRoomBytes = kRooms * kOneRoom;
  static constexpr int kBarriers = kBackward ? kRooms : 0;
  static constexpr int kSumBytes = 0;

  // As Finish has it.
  __device__ GatedFinish(const Maps& maps, const Call& call, unsigned char* rooms, float*,
                         Barrier* there)
      : maps_(maps),
        call_(call),
        rooms_(rooms + warp() * kRoomBytes),
        there_(there + warp() * kBarriers) {}

  __device__ void begin(const Place& place) {
    row_ = place.row + warp() % 4 * kPieceRows;
    column_ = place.column;
    pieces_ = 2 * min(kColumns / kPieceColumns,
                      (call_.columns - column_ + kPieceColumns - 1) / kPieceColumns);
    if (kBackward && speaks()) {
      stores_read();
      for (int i = 0; i < min(kRooms, pieces_); ++i) fetch(i);
    }
    __syncwarp();
  }

  __device__ void finish(const float (&sums)[2][kBroad / 2]) {
#pragma unroll
    for (int chunk = 0; chunk < kColumns / kPieceColumns; ++chunk) {
      if (2 * chunk >= pieces_) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int piece = 2 * chunk + half;
        const uint32_t room = enter(piece);
#pragma unroll
        for (int s = 0; s < kPieceColumns / 16; ++s) {
          // Of 16 rows and columns: matrices below each other, then beside each other.
          const uint32_t at =
              room + static_cast<uint32_t>(16 * ((2 * s + lane() / 16) ^ lane() % 8 / 2));
          uint32_t gate[4], up[4], made[4];
          if constexpr (kBackward) {
            load_matrices(gate, at);
            load_matrices(up, at + kPieceBytes);
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int from = 4 * (kPieceColumns / 8 * chunk + 2 * s + i / 2) + 2 * (i % 2);
            const float2 x = {sums[half][from], sums[half][from + 1]};
            if constexpr (kBackward) {
              backward(x, gate[i], up[i]);
            } else {
              const float2 y = {sums[half][kColumns / 2 + from],
                                sums[half][kColumns / 2 + from + 1]};
              gate[i] = pair<bf16>(x.x, x.y);
              up[i] = pair<bf16>(y.x, y.y);
              made[i] = pair<bf16>(x.x * sigmoid_of(x.x) * y.x, x.y * sigmoid_of(x.y) * y.y);
            }
          }
          store_matrices(at, gate);
          store_matrices(at + kPieceBytes, up);
          if constexpr (!kBackward) store_matrices(at + 2 * kPieceBytes, made);
        }
        leave(piece);
      }
    }
  }

  // What is in the rooms is read.
  __device__ void end() const {
    if (speaks()) stores_read();
  }

 private:
  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ bool speaks() { return lane() == 0; }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32 % kWarps; }

  // Of two elements: the gradients of the gate and of what it lets through, in the places of both.
  static __device__ void backward(const float2& dy, uint32_t& gate, uint32_t& up) {
    const float2 g = apart(gate), u = apart(up);
    const float low = sigmoid_of(g.x), high = sigmoid_of(g.y);
    const float dlow = dy.x * low, dhigh = dy.y * high;
    gate =
        pair<bf16>(dlow * u.x * fmaf(g.x, 1 - low, 1.0f), dhigh * u.y * fmaf(g.y, 1 - high, 1.0f));
    up = pair<bf16>(dlow * g.x, dhigh * g.y);
  }

  __device__ int row_of(int piece) const { return row_ + piece % 2 * (kTall / 2); }
  __device__ int column_of(int piece) const { return column_ + piece / 2 * kPieceColumns; }
  __device__ int room_of(int piece) const {
    return kBackward ? (first_room_ + piece) % kRooms : piece % kRooms;
  }
  // By one thread, when what was in the room is read.
  __device__ void fetch(int piece) {
    const int room = room_of(piece);
    unsigned char* const to = rooms_ + room * kOneRoom;
    there_[room].expect(kOneRoom);
    load_box(to, maps_.beside, there_[room], column_of(piece), row_of(piece), 0, 0);
    load_box(to + kPieceBytes, maps_.other_beside, there_[room], column_of(piece), row_of(piece), 0,
             0);
  }
  // The address of this lane's row of the first matrices in the piece's room, which is free now or
  // has what was fetched. With what finish() adds it is Tile::place, in fewer instructions.
  __device__ uint32_t enter(int piece) {
    const int room = room_of(piece);
    if constexpr (kBackward) {
      there_[room].wait(parities_ >> room & 1);
      parities_ ^= 1u << room;
    } else {
      if (speaks()) stores_read<kRooms - 1>();
      __syncwarp();
    }
    return shared_address(rooms_ + room * kOneRoom) +
           static_cast<uint32_t>(lane() % 16 * 2 * kPieceColumns);
  }
  // Sends what is in it to memory.
  __device__ void leave(int piece) {
    shared_written();
    __syncwarp();
    if (speaks()) {
      const unsigned char* const from = rooms_ + room_of(piece) * kOneRoom;
      const int column = column_of(piece), row = row_of(piece);
      if constexpr (kBackward) {
        store_box(maps_.y, from, column, row, 0, 0);
        store_box(maps_.other_y, from + kPieceBytes, column, row, 0, 0);
        end_stores();
        // Into the room of the piece before this one.
        const int next = piece - 1 + kRooms;
        if (piece > 0 && next < pieces_) {
          stores_read<1>();
          fetch(next);
        }
      } else {
        store_box(maps_.beside, from, column, row, 0, 0);
        store_box(maps_.other_beside, from + kPieceBytes, column, row, 0, 0);
        store_box(maps_.y, from + 2 * kPieceBytes, column, row, 0, 0);
        end_stores();
      }
    }
    __syncwarp();
    if (kBackward && piece == pieces_ - 1) first_room_ = (first_room_ + pieces_) % kRooms;
  }

  const Maps& maps_;
  const Call& call_;
  unsigned char* rooms_;
  Barrier* there_;
  uint32_t parities_ = 0;  // of the next phase of each room's barrier
  int first_room_ = 0, row_ = 0, column_ = 0, pieces_ = 0;
};

}  // namespace cleave::own_product
