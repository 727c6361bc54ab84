// What becomes of the sums of our products (product_hopper.cu) with SwiGLU behind them: of two
// products SwiGLU beside both, or of one the gradients of SwiGLU's operands.
#pragma once

#include "kernels/cuda/product_finish.cuh"

namespace cleave::own_product {

template <int kBroad, bool kBackward>
using GatedRooms = Rooms<kBackward ? kBroad : kBroad / 2, 32, kBackward ? 2 : 3, kBackward>;

// Of a warpgroup's sums, tile after tile: of SwiGLU [128, kBroad / 2] of the gate, and as many of
// what it lets through beside them; of its backward [128, kBroad] of the gradient of its result.
template <int kBroad, bool kBackward>
class GatedFinish : public GatedRooms<kBroad, kBackward> {
  using Base = GatedRooms<kBroad, kBackward>;
  using Base::pieces_, Base::place;
  static constexpr int kGate = kBackward ? 0 : 1;  // the place of its piece in a room

 public:
  static constexpr int kSumBytes = 0;

  // As Finish has it.
  __device__ GatedFinish(const Maps& maps, const Call& call, unsigned char* rooms, float*,
                         Barrier* there)
      : Base(maps, call, rooms, there) {}
  using Base::begin;

  __device__ void finish(const float (&sums)[2][kBroad / 2]) {
#pragma unroll
    for (int chunk = 0; chunk < Base::kColumns / Base::kPieceColumns; ++chunk) {
      if (2 * chunk >= pieces_) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int piece = 2 * chunk + half;
        const uint32_t room = Base::enter(piece);
#pragma unroll
        for (int s = 0; s < Base::kPieceColumns / 16; ++s) {
          uint32_t gate[4], up[4], made[4];
          if constexpr (kBackward) {
            load_matrices(gate, place(room, kGate, s));
            load_matrices(up, place(room, kGate + 1, s));
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int from = 4 * (Base::kPieceColumns / 8 * chunk + 2 * s + i / 2) + 2 * (i % 2);
            const float2 x = {sums[half][from], sums[half][from + 1]};
            if constexpr (kBackward) {
              backward(x, gate[i], up[i]);
            } else {
              const float2 y = {sums[half][Base::kColumns / 2 + from],
                                sums[half][Base::kColumns / 2 + from + 1]};
              gate[i] = pair<bf16>(x.x, x.y);
              up[i] = pair<bf16>(y.x, y.y);
              made[i] = pair<bf16>(x.x * sigmoid(x.x) * y.x, x.y * sigmoid(x.y) * y.y);
            }
          }
          if constexpr (!kBackward) store_matrices(place(room, 0, s), made);
          store_matrices(place(room, kGate, s), gate);
          store_matrices(place(room, kGate + 1, s), up);
        }
        Base::leave(piece);
      }
    }
  }

 private:
  // Of two elements: the gradients of the gate and of what it lets through, in the places of both.
  static __device__ void backward(const float2& dy, uint32_t& gate, uint32_t& up) {
    const float2 g = apart(gate), u = apart(up);
    const float low = sigmoid(g.x), high = sigmoid(g.y);
    const float dlow = dy.x * low, dhigh = dy.y * high;
    gate =
        pair<bf16>(dlow * u.x * fmaf(g.x, 1 - low, 1.0f), dhigh * u.y * fmaf(g.y, 1 - high, 1.0f));
    up = pair<bf16>(dlow * g.x, dhigh * g.y);
  }
};

}  // namespace cleave::own_product
