// grouped_matmul's products on tensor cores: a block computes 128 x 256 of a result, a warpgroup 64
// of the rows, while the tiles of the next two steps are copied to shared memory. Rows of an
// operand may lie anywhere, so threads copy them, 16 bytes at a time, and not the engine that moves
// boxes.
#include "kernels/cuda/grouped_work.cuh"
#include "kernels/cuda/hopper.cuh"

namespace cleave::grouped {
namespace {

using namespace hopper;  // NOLINT

constexpr int kThreads = 256;
constexpr int kTall = 128, kBroad = 256, kDeep = 64;  // rows, columns, and what is summed
// One step is multiplied, perhaps still the one before it, and two are on their way.
constexpr int kStages = 4;

// Copies 16 bytes to shared memory while the thread goes on; zeros when there is nothing.
__device__ inline void copy_ahead(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
// Until all that this thread copies has arrived.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// An operand: lines of it, in which elements lie next to each other.
template <class T>
struct Lines {
  const T* data;
  const int64_t* at;  // where each line lies; null: `step` apart
  int64_t step;
  int lines, length;
};

// Copies an operand's tiles, of kSide rows or columns of the result from `side` on, by the threads
// of a warpgroup. kAlong: lines go along what is summed over, one for each row or column of the
// result; else one for each number summed.
template <class T, bool kAlong, int kSide>
class Loader {
 public:
  using Shape = Tile<kAlong ? kSide : kDeep, kAlong ? kDeep : kSide>;

  __device__ Loader(const Lines<T>& lines, int side)
      : lines_(lines),
        line_(static_cast<int>(threadIdx.x) % 128 / kPieces),
        element_(static_cast<int>(threadIdx.x) % kPieces * 8),
        place_(Shape::place(line_, element_)) {
    if constexpr (kAlong) {
      line_ += side;
      find_lines(line_);
    } else {
      element_ += side;
    }
  }

  // Finds the lines of the tile of those summed from `from` on. Long before their copy: where a
  // line lies may itself have to be read, and nothing here waits for it.
  __device__ void find(int from) {
    if constexpr (!kAlong) find_lines(from + line_);
  }

  // Begins to copy the tile of those summed from `from` on, whose lines were found last.
  __device__ void copy(uint32_t tile, int from) const {
#pragma unroll
    for (int u = 0; u < kMine; ++u) {
      const bool line = (kAlong ? line_ : from + line_) + u * kApart < lines_.lines;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int element = element_ + (kAlong ? from : 8 * kPieces * part);
        const bool there = line && element < lines_.length;
        copy_ahead(tile + place_ +
                       static_cast<uint32_t>(u * kApart * Shape::kRowBytes +
                                             part * kPieces / 8 * Shape::kChunkBytes),
                   there ? lines_.data + at_[u] + element : lines_.data, there);
      }
    }
  }

 private:
  // Pieces of a line that threads copy at once, and how often they do.
  static constexpr int kPieces = kAlong ? 8 : 16, kParts = kAlong ? 1 : kSide / 128;
  static constexpr int kApart = 128 / kPieces;
  static constexpr int kMine = (kAlong ? kSide : kDeep) / kApart;
  // So the places of pieces are the same in all of a thread's lines.
  static_assert(kApart % 8 == 0 && Shape::kChunk == 64);

  // Lines `first`, `first` + kApart, ...; of those beyond the end, the last.
  __device__ void find_lines(int first) {
    const int last = lines_.lines - 1;
    if (lines_.at != nullptr) {
#pragma unroll
      for (int u = 0; u < kMine; ++u) at_[u] = lines_.at[min(first + u * kApart, last)];
    } else {
#pragma unroll
      for (int u = 0; u < kMine; ++u) at_[u] = min(first + u * kApart, last) * lines_.step;
    }
  }

  Lines<T> lines_;  // at least one
  int line_, element_;
  uint32_t place_;
  int64_t at_[kMine];
};

constexpr int kTileBytesA = kTall * kDeep * 2, kStageBytes = kTileBytesA + kBroad * kDeep * 2;
constexpr int kSharedBytes = kStages * kStageBytes + 1024;

// The tile of a b, over k numbers, from `row` and `column` on: of the warpgroup's 64 rows what a
// thread has (hopper.cuh).
template <class T, bool kAlongA, bool kAlongB>
__device__ inline void multiply_lines(float (&sums)[kBroad / 2], const Lines<T>& lines_a,
                                      const Lines<T>& lines_b, int row, int column, int k) {
  extern __shared__ unsigned char raw[];
  using A = Loader<T, kAlongA, kTall>;
  using B = Loader<T, kAlongB, kBroad>;
  using TileA = typename A::Shape;
  using TileB = typename B::Shape;
  unsigned char* const stages = aligned_shared(raw);
  const uint32_t address = shared_address(stages), base = TileA::base(stages);
  // Of a: the warpgroup's rows, or its chunk of columns.
  const uint32_t own = threadIdx.x / 128 * (kAlongA ? 64 * TileA::kRowBytes : TileA::kChunkBytes);
  A a(lines_a, row);
  B b(lines_b, column);
  const int steps = (k + kDeep - 1) / kDeep;
  // The warpgroups take turns, so that a thread waits for its copies only when their step is due.
  const int turn = static_cast<int>(threadIdx.x) / 128;
  const auto load = [&](int step) {
    if (step % 2 == turn && step < steps) {
      const uint32_t to = address + static_cast<uint32_t>(step % kStages * kStageBytes);
      a.copy(to, step * kDeep);
      b.copy(to + kTileBytesA, step * kDeep);
      a.find((step + 2) * kDeep);
      b.find((step + 2) * kDeep);
    }
  };
  a.find(turn * kDeep);
  b.find(turn * kDeep);
  load(turn);
  for (int step = 0; step < steps; ++step) {
    if (step % 2 == turn) {
      wait_for_copies();
      shared_written();
    }
    // The step is there; and both warpgroups are done with the step before the last.
    __syncthreads();
    const uint32_t at = base + static_cast<uint32_t>(step % kStages * (kStageBytes / 16));
    begin_products();
#pragma unroll
    for (int d = 0; d < kDeep / 16; ++d) {
      const uint32_t of_a = at + own / 16, of_b = at + kTileBytesA / 16;
      product<T, kAlongB ? 0 : 1, kBroad / 2, kAlongA ? 0 : 1>(
          sums, kAlongA ? TileA::along(of_a, d) : TileA::across(of_a, d),
          kAlongB ? TileB::along(of_b, d) : TileB::across(of_b, d), step + d > 0);
    }
    end_products();
    load(step + 2);
    wait_products<1>();
  }
  wait_products<0>();
  hold(sums);
}

// kAlongA, kAlongB: whether the operands lie dense along what is summed over, or along y.
template <class T, bool kAlongA, bool kAlongB, bool kRowsSummed>
__global__ void __launch_bounds__(kThreads, 1) tensor_product(Product<T> p) {
  Work w;
  if (!find_work<kTall, kBroad, kRowsSummed>(p, w)) return;
  const auto lines = [&](const Operand<T>& o, bool along, int sides) {
    const bool rows = o.at != nullptr;
    return Lines<T>{.data = o.data + (rows ? 0 : w.expert * o.expert_step),
                    .at = rows ? o.at + w.begin : nullptr,
                    .step = along ? o.side_step : o.sum_step,
                    .lines = along ? sides : w.k,
                    .length = along ? w.k : sides};
  };
  float sums[kBroad / 2];
#pragma unroll
  for (float& sum : sums) sum = 0;
  if (w.k > 0) {
    multiply_lines<T, kAlongA, kAlongB>(sums, lines(p.a, kAlongA, w.m), lines(p.b, kAlongB, w.n),
                                        w.row, w.column, w.k);
  }
  const float start = start_of(p, w);
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = w.row + static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4 + 8 * i;
    T* const y = row < w.m ? result_row(p, w, row) : nullptr;
#pragma unroll
    for (int j = 0; j < kBroad / 8; j += 4) {
      uint32_t x[4];
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int at = 4 * (j + s) + 2 * i;
        x[s] = pair<T>(sums[at] + start, sums[at + 1] + start);
      }
      transpose_quad(x);
      const int column = w.column + 8 * (j + lane % 4);
      if (y != nullptr && column < w.n) {
        *reinterpret_cast<uint4*>(y + column) = make_uint4(x[0], x[1], x[2], x[3]);
      }
    }
  }
}

}  // namespace

template <class T>
void launch_on_tensor_cores(const Product<T>& p, bool along_b, int64_t rows, cudaStream_t stream) {
  auto* const kernel = p.y_at == nullptr ? tensor_product<T, false, false, true>
                       : along_b         ? tensor_product<T, true, true, false>
                                         : tensor_product<T, true, false, false>;
  launch_grouped<T>(p, rows, kTall, kBroad, kThreads, kSharedBytes, stream, kernel);
}

template void launch_on_tensor_cores(const Product<bf16>&, bool, int64_t, cudaStream_t);
template void launch_on_tensor_cores(const Product<f16>&, bool, int64_t, cudaStream_t);

}  // namespace cleave::grouped
