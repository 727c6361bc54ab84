// Rows of a table picked by index, and the sums of gradients by row. Backward, tokens are sorted by
// their rows, and those of one row are added in the order of the tokens: in pieces, when there are
// many, so that a frequent token does not keep one warp busy.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/workspace.h"
#include "kernels/rows.h"

namespace cleave {
namespace {

// --- Forward -------------------------------------------------------------------------------------

template <class T>
struct Embedding {
  const T* table;
  const int* ids;
  T* out;
  Loops<2> tokens;  // ids, out
  int vectors;      // of a row
  int64_t row_step, table_step, out_step;
  Shard rows;
};

// A thread has one vector of one token. An id outside the table makes NaN, and so the loss.
template <class T, int N>
__global__ void __launch_bounds__(256) rows_of_tokens(Embedding<T> e) {
  const int64_t i = blockIdx.x * int64_t{256} + threadIdx.x;
  const int64_t token = i / e.vectors;
  if (token >= e.tokens.count) return;
  const int v = static_cast<int>(i - token * e.vectors);
  int64_t at[2];
  e.tokens.offsets(token, at);
  const int id = e.ids[at[0]];
  const bool exists = id >= 0 && id < e.rows.global;
  const int64_t own = exists ? e.rows.own(id) : -1;
  Vec<T, N> x;
  if (own >= 0) {
    x = row_load<N>(e.table + own * e.row_step, e.table_step, v);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) x.x[j] = To<T>::of(exists ? 0.0f : __builtin_nanf(""));
  }
  row_store(e.out + at[1], e.out_step, v, x);
}

// --- Backward ------------------------------------------------------------------------------------

// The key of a token is its row in this shard; `rows`, behind all of them, when it has none.
__global__ void __launch_bounds__(256)
    keys_of_tokens(const int* ids, Loops<2> tokens, Shard rows, unsigned* keys, int* numbers) {
  const int64_t i = blockIdx.x * int64_t{256} + threadIdx.x;
  if (i >= tokens.count) return;
  int64_t at[2];
  tokens.offsets(i, at);
  const int id = ids[at[0]];
  const bool exists = id >= 0 && id < rows.global;
  const int64_t own = exists ? rows.own(id) : -1;
  keys[i] = static_cast<unsigned>(own < 0 ? rows.local : own);
  numbers[i] = static_cast<int>(i);
}

// starts[row] = the first of the sorted keys that is at least `row`, for row <= rows.
__global__ void __launch_bounds__(256)
    starts_of_rows(const unsigned* keys, int tokens, int64_t rows, int* starts) {
  const int64_t row = blockIdx.x * int64_t{256} + threadIdx.x;
  if (row > rows) return;
  int low = 0, high = tokens;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (keys[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[row] = low;
}

template <class T>
struct Gradient {
  const T* dy;
  T* dtable;
  Loops<2> tokens;       // ids, dy
  const unsigned* keys;  // sorted
  const int* numbers;    // of the tokens, sorted by keys
  const int* starts;
  Statistic<T>* sums;  // [pieces, 2, width]: of a piece's first row and of its last one
  int count, vectors;
  int64_t rows, row_step, dtable_step, dy_step;
};

// sum += vector v of the tokens [begin, end) in the order of rows, one after the other.
template <class T, int N>
__device__ void add_tokens(const Gradient<T>& g, int begin, int end, int v,
                           Statistic<T> (&sum)[N]) {
  constexpr int kAtOnce = 4;
  const auto read = [&](int i) {
    int64_t at[2];
    g.tokens.offsets(g.numbers[i], at);
    return row_load<N>(g.dy + at[1], g.dy_step, v);
  };
  int i = begin;
  for (; i + kAtOnce <= end; i += kAtOnce) {
    Vec<T, N> x[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) x[k] = read(i + k);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += number(x[k].x[j]);
    }
  }
  for (; i < end; ++i) {
    const Vec<T, N> x = read(i);
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] += number(x.x[j]);
  }
}

// A block has one piece. What it adds up for rows that have tokens in other pieces too: first for
// the row that goes on from the piece before, then for one that begins here and goes on in the
// next.
template <class T, int N>
__global__ void __launch_bounds__(128) sums_of_pieces(Gradient<T> g) {
  const int begin = blockIdx.x * kEmbeddingPiece, end = min(begin + kEmbeddingPiece, g.count);
  for (int which = 0; which < 2; ++which) {
    const int64_t row = g.keys[which == 0 ? begin : end - 1];
    if (row >= g.rows) continue;
    const int first = g.starts[row], last = g.starts[row + 1];
    const bool before = first < begin;
    if (which == 0 ? !before : before || last <= end) continue;
    Statistic<T>* const to =
        g.sums + (blockIdx.x * int64_t{2} + which) * (static_cast<int64_t>(g.vectors) * N);
    for (int v = threadIdx.x; v < g.vectors; v += 128) {
      Statistic<T> sum[N] = {};
      add_tokens<T, N>(g, max(first, begin), min(last, end), v, sum);
#pragma unroll
      for (int j = 0; j < N; ++j) to[static_cast<int64_t>(v) * N + j] = sum[j];
    }
  }
}

// A warp has one row: nothing, the sum of some tokens, or that of pieces.
template <class T, int N>
__global__ void __launch_bounds__(256) sums_of_rows(Gradient<T> g) {
  const int64_t row = blockIdx.x * int64_t{8} + threadIdx.x / 32;
  if (row >= g.rows) return;
  const int begin = g.starts[row], end = g.starts[row + 1];
  const int first = begin / kEmbeddingPiece,
            last = end > begin ? (end - 1) / kEmbeddingPiece : first;
  const int64_t width = static_cast<int64_t>(g.vectors) * N;
  for (int v = threadIdx.x % 32; v < g.vectors; v += 32) {
    Statistic<T> sum[N] = {};
    if (first == last) {
      add_tokens<T, N>(g, begin, end, v, sum);
    } else {
#pragma unroll 4
      for (int piece = first; piece <= last; ++piece) {
        const Statistic<T>* const from =
            g.sums + (piece * int64_t{2} + (piece == first ? 1 : 0)) * width;
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += from[static_cast<int64_t>(v) * N + j];
      }
    }
    Vec<T, N> out;
#pragma unroll
    for (int j = 0; j < N; ++j) out.x[j] = To<T>::of(sum[j]);
    row_store(g.dtable + row * g.row_step, g.dtable_step, v, out);
  }
}

// Whether rows of a table can be moved 16 bytes at a time.
template <class T>
bool wide_table(const T* table, int64_t rows, int64_t row_step, int64_t step, int64_t width) {
  LoopNest<1> nest;
  nest.add(rows, {row_step});
  return wide_rows<T>(nest, 0, table, step, width);
}

// Calls fn.operator()<N>() with the length of vectors.
template <class T, class Fn>
void with_vectors(bool wide, Fn&& fn) {
  if (wide) return fn.template operator()<kWide<T>>();
  fn.template operator()<1>();
}

}  // namespace

void embedding_cuda(const KernelArgs& args) {
  const OperandDims& dims = args.signature.inputs()[0];
  const auto v = static_cast<size_t>(dims[0][0]), d = static_cast<size_t>(dims[1][0]);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Shape table = in_strides(args, 0), out = out_strides(args, 0);
    const auto tokens =
        nest_over<2>(args, factors_without(args.signature.outputs()[0], static_cast<int>(d)),
                     {in_strides(args, 1), out});
    const int64_t width = args.extents[d].local;
    CLEAVE_ASSERT(width <= INT32_MAX, "rows of {} elements", width);
    if (tokens.count() * width == 0) return;
    Embedding<T> k = {.table = args.in[0].as<const T>(),
                      .ids = args.in[1].as<const int>(),
                      .out = args.out[0].as<T>(),
                      .tokens = loops_of(tokens),
                      .vectors = static_cast<int>(width),
                      .row_step = table[v],
                      .table_step = table[d],
                      .out_step = out[d],
                      .rows = shard_of(args.extents[v])};
    const bool wide = wide_table(k.table, args.extents[v].local, k.row_step, k.table_step, width) &&
                      wide_rows<T>(tokens, 1, k.out, k.out_step, width);
    with_vectors<T>(wide, [&]<int N>() {
      k.vectors = static_cast<int>(width / N);
      const auto blocks = static_cast<unsigned>(ceil_div(tokens.count() * k.vectors, 256));
      rows_of_tokens<T, N><<<blocks, 256, 0, static_cast<cudaStream_t>(args.stream)>>>(k);
    });
    cuda_check(cudaGetLastError());
  });
}

void embedding_backward_cuda(const KernelArgs& args) {
  const OperandDims& dims = args.signature.outputs()[0];
  const auto v = static_cast<size_t>(dims[0][0]), d = static_cast<size_t>(dims[1][0]);
  const auto stream = static_cast<cudaStream_t>(args.stream);
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    const Shape dy = in_strides(args, 0), table = out_strides(args, 0);
    const auto tokens =
        nest_over<2>(args, factors_of(args.signature.inputs()[1]), {in_strides(args, 1), dy});
    const int64_t width = args.extents[d].local, rows = args.extents[v].local;
    const int64_t count = tokens.count();
    CLEAVE_ASSERT(count <= INT32_MAX && rows < INT32_MAX && width <= INT32_MAX,
                  "{} tokens of {} in {} rows", count, width, rows);
    if (rows * width == 0) return;
    const EmbeddingParts parts = embedding_parts(count, rows, width, sizeof(Statistic<T>));
    const auto at = [&](int64_t offset) { return static_cast<char*>(args.workspace) + offset; };
    const auto keys = reinterpret_cast<unsigned*>(at(parts.keys));
    const auto sorted_keys = reinterpret_cast<unsigned*>(at(parts.sorted_keys));
    const auto numbers = reinterpret_cast<int*>(at(parts.tokens));
    const auto sorted_numbers = reinterpret_cast<int*>(at(parts.sorted_tokens));
    const auto starts = reinterpret_cast<int*>(at(parts.starts));
    const auto blocks = [](int64_t threads) {
      return static_cast<unsigned>(ceil_div(threads, 256));
    };
    if (count > 0) {
      keys_of_tokens<<<blocks(count), 256, 0, stream>>>(
          args.in[1].as<const int>(), loops_of(tokens), shard_of(args.extents[v]), keys, numbers);
      cuda_check(cudaGetLastError());
      const int bits = std::bit_width(static_cast<uint64_t>(rows));
      size_t bytes = 0;
      cuda_check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, sorted_keys, numbers,
                                                 sorted_numbers, static_cast<int>(count), 0, bits,
                                                 stream));
      CLEAVE_ASSERT(bytes <= static_cast<size_t>(parts.sort_bytes),
                    "sorting {} tokens takes {} bytes, not {}", count, bytes, parts.sort_bytes);
      cuda_check(cub::DeviceRadixSort::SortPairs(at(parts.sort), bytes, keys, sorted_keys, numbers,
                                                 sorted_numbers, static_cast<int>(count), 0, bits,
                                                 stream));
    }
    starts_of_rows<<<blocks(rows + 1), 256, 0, stream>>>(sorted_keys, static_cast<int>(count), rows,
                                                         starts);
    cuda_check(cudaGetLastError());
    Gradient<T> k = {.dy = args.in[0].as<const T>(),
                     .dtable = args.out[0].as<T>(),
                     .tokens = loops_of(tokens),
                     .keys = sorted_keys,
                     .numbers = sorted_numbers,
                     .starts = starts,
                     .sums = reinterpret_cast<Statistic<T>*>(at(parts.sums)),
                     .count = static_cast<int>(count),
                     .vectors = static_cast<int>(width),
                     .rows = rows,
                     .row_step = table[v],
                     .dtable_step = table[d],
                     .dy_step = dy[d]};
    const bool wide = wide_rows<T>(tokens, 1, k.dy, k.dy_step, width) &&
                      wide_table<T>(k.dtable, rows, k.row_step, k.dtable_step, width);
    with_vectors<T>(wide, [&]<int N>() {
      k.vectors = static_cast<int>(width / N);
      if (count > 0) {
        sums_of_pieces<T, N>
            <<<static_cast<unsigned>(ceil_div(count, kEmbeddingPiece)), 128, 0, stream>>>(k);
      }
      sums_of_rows<T, N><<<static_cast<unsigned>(ceil_div(rows, 8)), 256, 0, stream>>>(k);
    });
    cuda_check(cudaGetLastError());
  });
}

}  // namespace cleave
