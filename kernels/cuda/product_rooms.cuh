// On the way of our products' sums (product_hopper.cu) to memory: the rooms of shared memory that
// each warp's results pass through, and in which it finds what the copy engine fetched for it.
#pragma once

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/products.h"

namespace cleave::own_product {

using namespace hopper;  // NOLINT

constexpr int kTall = 128;  // rows of a tile
constexpr int kWarps = 8;   // that multiply: two warpgroups

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

// Two numbers of a register.
__device__ inline float2 apart(uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}

constexpr int kPieceRows = 16;  // a warp's results go to memory piece by piece

// Of a warpgroup's tiles of [128, kAcross] results, one after the other. A warp's pieces are those
// of its rows, kPieceAcross columns at a time, first of the upper half of the tile, then of the
// lower one. A room has a piece of each of kTensors tensors: y, then what is beside it; or, with
// kReads, what is beside, whose places the results take.
template <int kAcross, int kPieceAcross, int kTensors, bool kReads>
class Rooms {
  // For one to be filled while others are on their way. One without anything beside, which leaves
  // shared memory to the operands.
  static constexpr int kRooms = kReads ? 3 : kTensors > 1 ? 2 : 1;
  static constexpr int kOneRoom = kTensors * 2 * kPieceRows * kPieceAcross;

 public:
  static constexpr int kColumns = kAcross, kPieceColumns = kPieceAcross;
  static_assert(kColumns % kPieceColumns == 0);
  // Of a warp: bytes of its rooms, and a barrier for each that is read from.
  static constexpr int kRoomBytes = kRooms * kOneRoom, kBarriers = kReads ? kRooms : 0;

  // What is in the rooms is read.
  __device__ void end() const {
    if (speaks()) stores_read();
  }

 protected:
  static constexpr int kPieceBytes = 2 * kPieceRows * kPieceColumns;

  // `rooms`, `there`: of all warps.
  __device__ Rooms(const Maps& maps, const Call& call, unsigned char* rooms, Barrier* there)
      : call_(call),
        maps_(maps),
        rooms_(rooms + warp() * kRoomBytes),
        there_(there + warp() * kBarriers) {}

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ bool speaks() { return lane() == 0; }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32 % kWarps; }

  // Of the tile that is to be finished next: fetches what is beside it.
  __device__ void begin(const Place& place) {
    row_ = place.row + warp() % 4 * kPieceRows;
    column_ = place.column;
    pieces_ = 2 * min(kColumns / kPieceColumns,
                      (call_.columns - column_ + kPieceColumns - 1) / kPieceColumns);
    if (kReads && speaks()) {
      stores_read();
      for (int i = 0; i < min(kRooms, pieces_); ++i) fetch(i);
    }
    __syncwarp();
  }
  // The address of this lane's row of the first matrices in the piece's room, which is free now or
  // has what was fetched. With what place() adds it is Tile::place, in fewer instructions.
  __device__ uint32_t enter(int piece) {
    const int room = room_of(piece);
    if constexpr (kReads) {
      there_[room].wait(parities_ >> room & 1);
      parities_ ^= 1u << room;
    } else {
      if (speaks()) stores_read<kRooms - 1>();
      __syncwarp();
    }
    return shared_address(rooms_ + room * kOneRoom) +
           static_cast<uint32_t>(lane() % 16 * 2 * kPieceColumns);
  }
  // Of 16 columns of a tensor's piece, for load_matrices() and store_matrices(): matrices below
  // each other, then beside each other.
  static __device__ uint32_t place(uint32_t room, int tensor, int sixteen) {
    constexpr int kRowsOfSwizzle = 64 / kPieceColumns;
    return room + static_cast<uint32_t>(tensor * kPieceBytes + 16 * ((2 * sixteen + lane() / 16) ^
                                                                     lane() % 8 / kRowsOfSwizzle));
  }
  // Sends what is in it to memory.
  __device__ void leave(int piece) {
    shared_written();
    __syncwarp();
    if (speaks()) {
      const unsigned char* const from = rooms_ + room_of(piece) * kOneRoom;
      const int column = column_of(piece), row = row_of(piece);
      store_box(maps_.y, from, column, row, 0, 0);
      if constexpr (kTensors > 1)
        store_box(kReads ? maps_.other_y : maps_.beside, from + kPieceBytes, column, row, 0, 0);
      if constexpr (kTensors > 2)
        store_box(maps_.other_beside, from + 2 * kPieceBytes, column, row, 0, 0);
      end_stores();
      if constexpr (kReads) {
        // Into the room of the piece before this one.
        const int next = piece - 1 + kRooms;
        if (piece > 0 && next < pieces_) {
          stores_read<1>();
          fetch(next);
        }
      }
    }
    __syncwarp();
    if (kReads && piece == pieces_ - 1) first_room_ = (first_room_ + pieces_) % kRooms;
  }

  const Call& call_;
  int row_ = 0, column_ = 0;  // this warp's first
  int pieces_ = 0;

 private:
  __device__ int row_of(int piece) const { return row_ + piece % 2 * (kTall / 2); }
  __device__ int column_of(int piece) const { return column_ + piece / 2 * kPieceColumns; }
  __device__ int room_of(int piece) const {
    return kReads ? (first_room_ + piece) % kRooms : piece % kRooms;
  }
  // By one thread, when what was in the room is read.
  __device__ void fetch(int piece) {
    static_assert(!kReads || kTensors <= 2);
    const int room = room_of(piece), column = column_of(piece), row = row_of(piece);
    unsigned char* const to = rooms_ + room * kOneRoom;
    there_[room].expect(kOneRoom);
    load_box(to, maps_.beside, there_[room], column, row, 0, 0);
    if constexpr (kTensors > 1)
      load_box(to + kPieceBytes, maps_.other_beside, there_[room], column, row, 0, 0);
  }

  const Maps& maps_;
  unsigned char* rooms_;
  Barrier* there_;
  uint32_t parities_ = 0;  // of the next phase of each room's barrier
  int first_room_ = 0;
};

}  // namespace cleave::own_product
