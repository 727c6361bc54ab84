// Tiles of products of 16-bit floats for grouped_matmul: 128 x 128 of the result by one block, with
// tensor cores, from tiles of the operands that are copied to shared memory three steps ahead.
// Lines of an operand lie anywhere in memory; 8 elements of a line lie next to each other.
#pragma once

#include "kernels/cuda/rows.cuh"

namespace cleave::tiles {

inline constexpr int kThreads = 256;
inline constexpr int kSide = 128, kDeep = 64;  // of a tile: rows or columns, and what is summed
inline constexpr int kStages = 3;
inline constexpr int kTileElements = kSide * kDeep;
inline constexpr int kSharedBytes = kStages * 2 * kTileElements * 2;

// Copies 16 bytes to shared memory while the thread goes on; zeros when there is nothing.
__device__ inline void copy_ahead(void* to, const void* from, bool there) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void end_of_step() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all steps but the last kLater have arrived.
template <int kLater>
__device__ inline void wait_for_steps() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

// An operand: lines of it, in which elements lie next to each other.
template <class T>
struct Lines {
  const T* data;
  const int64_t* at;  // where each line lies; null: `step` apart
  int64_t step;
  int lines, length;

  __device__ const T* line(int i) const { return data + (at != nullptr ? at[i] : i * step); }
};

// The place in a tile of 8 elements of a line: lines that follow each other lie in banks apart.
template <int kChunks>
__device__ inline int place_of(int line, int chunk) {
  return (line * kChunks + (chunk ^ (line & 7))) * 8;
}

// Copies an operand's tiles, of one side's kSide from `side` on. kAlong: lines go along what is
// summed over, one for each row or column of the result; else one for each number summed.
template <class T, bool kAlong>
class Loader {
 public:
  static constexpr int kChunks = (kAlong ? kDeep : kSide) / 8;

  __device__ Loader(const Lines<T>& lines, int side)
      : lines_(lines), line_(threadIdx.x / kChunks), element_(threadIdx.x % kChunks * 8) {
    if constexpr (kAlong) {
#pragma unroll
      for (int u = 0; u < kMine; ++u) {
        const int i = side + line_ + u * kApart;
        mine_[u] = i < lines.lines ? lines.line(i) : nullptr;
      }
    } else {
      element_ += side;
    }
  }

  // The tile of those summed from `from` on.
  __device__ void load(T* tile, int from) const {
#pragma unroll
    for (int u = 0; u < kMine; ++u) {
      const int line = line_ + u * kApart;
      const T* source;
      bool there;
      if constexpr (kAlong) {
        there = mine_[u] != nullptr && from + element_ < lines_.length;
        source = mine_[u] + from + element_;
      } else {
        there = from + line < lines_.lines && element_ < lines_.length;
        source = there ? lines_.line(from + line) + element_ : nullptr;
      }
      copy_ahead(tile + place_of<kChunks>(line, threadIdx.x % kChunks),
                 there ? source : lines_.data, there);
    }
  }

 private:
  static constexpr int kApart = kThreads / kChunks;
  static constexpr int kMine = (kAlong ? kSide : kDeep) / kApart;
  Lines<T> lines_;
  int line_, element_;
  const T* mine_[kAlong ? kMine : 1];
};

// Four matrices of 8 x 8 from shared memory, lane l having given the address of line l % 8 of
// matrix l / 8.
template <bool kTransposed>
__device__ inline void load_matrices(unsigned (&x)[4], const void* line) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(line));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
  }
}

// sums += a [16, 16] b [16, 8].
__device__ inline void multiply(bf16, float (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply(f16, float (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The part of a tile of the result that a thread has: of its warp's 64 x 32 the pairs of columns
// that tensor cores leave with it.
struct Sums {
  static constexpr int kDown = 4, kAcross = 4;
  float x[kDown][kAcross][4] = {};

  // Calls fn(row, column, sum, sum of the next column).
  template <class Fn>
  __device__ void each_pair(const Fn& fn) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp / 4 * 64 + i * 16 + half * 8 + lane / 4;
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
          const int column = warp % 4 * 32 + j * 8 + lane % 4 * 2;
          fn(row, column, x[i][j][half * 2], x[i][j][half * 2 + 1]);
        }
      }
    }
  }
};

// sums += a b over one step; a is [kSide, kDeep] and b [kDeep, kSide] in shared memory.
template <class T, bool kAlongA, bool kAlongB>
__device__ inline void multiply_tiles(Sums& sums, const T* a, const T* b) {
  constexpr int kChunksA = Loader<T, kAlongA>::kChunks, kChunksB = Loader<T, kAlongB>::kChunks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / 4 * 64, column = warp % 4 * 32;
  const int line = lane % 8, second = lane / 8 % 2, upper = lane / 16;  // of four matrices
#pragma unroll
  for (int k = 0; k < kDeep; k += 16) {
    unsigned left[Sums::kDown][4], right[Sums::kAcross / 2][4];
#pragma unroll
    for (int i = 0; i < Sums::kDown; ++i) {
      const int m = row + i * 16;
      const int place = kAlongA ? place_of<kChunksA>(m + second * 8 + line, k / 8 + upper)
                                : place_of<kChunksA>(k + upper * 8 + line, m / 8 + second);
      load_matrices<!kAlongA>(left[i], a + place);
    }
#pragma unroll
    for (int j = 0; j < Sums::kAcross / 2; ++j) {
      const int n = column + j * 16;
      const int place = kAlongB ? place_of<kChunksB>(n + upper * 8 + line, k / 8 + second)
                                : place_of<kChunksB>(k + second * 8 + line, n / 8 + upper);
      load_matrices<!kAlongB>(right[j], b + place);
    }
#pragma unroll
    for (int i = 0; i < Sums::kDown; ++i) {
#pragma unroll
      for (int j = 0; j < Sums::kAcross; ++j) {
        multiply(T{}, sums.x[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

// The tile of a b, over k numbers, from `row` and `column` on.
template <class T, bool kAlongA, bool kAlongB>
__device__ inline void multiply_lines(Sums& sums, const Lines<T>& a, const Lines<T>& b, int row,
                                      int column, int k) {
  extern __shared__ __align__(128) unsigned char memory[];
  T* const tiles = reinterpret_cast<T*>(memory);
  const Loader<T, kAlongA> load_a(a, row);
  const Loader<T, kAlongB> load_b(b, column);
  const int steps = (k + kDeep - 1) / kDeep;
  const auto load = [&](int step) {
    if (step < steps) {
      T* const to = tiles + step % kStages * 2 * kTileElements;
      load_a.load(to, step * kDeep);
      load_b.load(to + kTileElements, step * kDeep);
    }
    end_of_step();
  };
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step < steps; ++step) {
    wait_for_steps<kStages - 2>();
    __syncthreads();
    load(step + kStages - 1);  // over the tiles that all threads are done with
    const T* const from = tiles + step % kStages * 2 * kTileElements;
    multiply_tiles<T, kAlongA, kAlongB>(sums, from, from + kTileElements);
  }
}

}  // namespace cleave::tiles
