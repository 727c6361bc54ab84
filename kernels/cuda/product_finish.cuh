// What becomes of the sums of our products (product_hopper.cu) on their way to memory: a bias, GELU
// or its slope. SwiGLU is in product_gated.cuh.
#pragma once

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/product_rooms.cuh"

namespace cleave::own_product {

static_assert(kTall == kSummedColumns);

// GELU and its slope (prelude.cuh) in few instructions, and as exact as f32 is where they are
// small, as by an approximate tanh they are not: x / (1 + 2^(x (c + a c x^2))).
constexpr float kGeluC = -1.5957691216057308 * kLog2E, kGeluA = 0.044715;
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

template <int kBroad, Epilogue kEpilogue>
using RoomsOf =
    Rooms<kBroad, 64, kEpilogue == Epilogue::kGelu ? 2 : 1, kEpilogue == Epilogue::kGeluBackward>;

// Of a warpgroup's sums, tile after tile of [128, kBroad].
template <int kBroad, Epilogue kEpilogue>
class Finish : public RoomsOf<kBroad, kEpilogue> {
  using Base = RoomsOf<kBroad, kEpilogue>;
  using Base::call_, Base::column_, Base::pieces_, Base::row_;
  using Base::lane, Base::place, Base::warp;
  static constexpr bool kSlope = kEpilogue == Epilogue::kGeluBackward;

 public:
  static constexpr int kSumBytes = kSlope ? kBroad * 4 : 0;  // a row of sums a warp

  // `kept`: [kWarps, kBroad], for sums over rows; the rest as Rooms has it.
  __device__ Finish(const Maps& maps, const Call& call, unsigned char* rooms, float* kept,
                    Barrier* there)
      : Base(maps, call, rooms, there), kept_(kept) {}

  // Of the tile that is to be finished next: fetches what stands beside it, or its bias.
  __device__ void begin(const Place& place) {
    Base::begin(place);
    if constexpr (!kSlope) {
      if (call_.bias == nullptr) return;
#pragma unroll
      for (int i = 0; i < kBroad / 64; ++i) {
        const int column = column_ + 64 * i + 2 * lane();
        bias_[i] = column < call_.columns
                       ? __ldg(reinterpret_cast<const uint32_t*>(call_.bias + column))
                       : 0;
      }
    }
  }

  __device__ void finish(const float (&sums)[2][kBroad / 2]) {
    if (kSlope && call_.sums != nullptr) meet();  // those of the tile before are read
#pragma unroll
    for (int chunk = 0; chunk < kBroad / Base::kPieceColumns; ++chunk) {
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
        const uint32_t room = Base::enter(piece);
        // What is beside is read so far ahead, for more to do while it comes: as registers allow.
        constexpr int kAhead = kBroad == 128 ? 4 : 1;
        uint32_t z[4][4];
#pragma unroll
        for (int s = 0; kSlope && s < kAhead; ++s) load_matrices(z[s], place(room, 0, s));
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          if (kSlope && s > 0 && s + kAhead <= 4)
            load_matrices(z[s + kAhead - 1], place(room, 0, s + kAhead - 1));
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
          store_matrices(place(room, 0, s), x);
          if constexpr (kEpilogue == Epilogue::kGelu) store_matrices(place(room, 1, s), z[s]);
        }
        Base::leave(piece);
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

 private:
  static __device__ void meet() { meet_warpgroup(static_cast<int>(threadIdx.x) / 128); }
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

  float* kept_;
  uint32_t bias_[kBroad / 64] = {};  // of columns 64 i + 2 lane, ...
};

}  // namespace cleave::own_product
