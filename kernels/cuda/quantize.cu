// Codes of 8 bits of a tensor and of its transpose, in one pass: tiles of 128 x 128 that are read
// once, of which four rows at a time are turned in registers and the rest through shared memory.
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/workspace.h"

namespace cleave {
namespace {

constexpr int kTile = 128, kThreads = 256;

// --- Sizes ---------------------------------------------------------------------------------------

// The bits of |x|, which are in the order of sizes, those of NaN above all others.
__device__ inline unsigned size_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// Over the block, the same in all threads. `shared` is used once.
__device__ inline unsigned over_block(unsigned x, unsigned* shared) {
  x = __reduce_max_sync(0xffffffffu, x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  return __reduce_max_sync(0xffffffffu, shared[threadIdx.x % (kThreads / 32)]);
}

// What sizes tell the scale: those of the past, and, when there are none, those of find_size.
struct Sizes {
  const float* history;  // null: none is kept
  int64_t length, step;
  const unsigned* found;  // [found_count]
  int found_count;

  __device__ unsigned past() const {
    unsigned size = 0;
    if (history == nullptr) return size;
    for (int64_t i = threadIdx.x; i < length; i += kThreads) {
      size = max(size, size_bits(history[i * step]));
    }
    return size;
  }
  // By all threads of a block.
  __device__ unsigned largest(unsigned* shared) const {
    unsigned size = past();
    if (__syncthreads_or(size != 0) == 0) {
      for (int i = threadIdx.x; i < found_count; i += kThreads) size = max(size, found[i]);
    }
    return over_block(size, shared);
  }
};

// As f8_scale, and its inverse.
struct Scale {
  float scale = 1, inverse = 1;
  __device__ Scale(unsigned size, float largest) {
    if (size == 0 || size >= 0x7f800000u) return;
    const float ratio = largest / __uint_as_float(size);
    const int exponent = min(max(static_cast<int>(__float_as_uint(ratio) >> 23) - 127, -100), 100);
    scale = __uint_as_float(static_cast<unsigned>(127 + exponent) << 23);
    inverse = __uint_as_float(static_cast<unsigned>(127 - exponent) << 23);
  }
};

// The largest size of each block's elements; not when the past tells it. Before, the collected
// sizes are brought to where they are written, when that is elsewhere.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    find_size(const T* x, Loops<1> loops, Sizes sizes, unsigned* found, const float* from,
              int64_t from_step, float* to, int64_t to_step, int64_t tensors) {
  constexpr int kAtOnce = 4;
  __shared__ unsigned shared[kThreads / 32];
  if (blockIdx.x == 0 && from != to) {
    for (int64_t i = threadIdx.x; i < tensors; i += kThreads) to[i * to_step] = from[i * from_step];
  }
  if (__syncthreads_or(sizes.past() != 0) != 0) return;
  unsigned size = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.count;
       i += kAtOnce * step) {
    Vec<T, N> v[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      int64_t at[1];
      loops.offsets(min(i + k * step, loops.count - 1), at);
      v[k] = load<N>(x + at[0]);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
      for (int j = 0; j < N; ++j) size = max(size, size_bits(To<float>::of(number(v[k].x[j]))));
    }
  }
  size = over_block(size, shared);
  if (threadIdx.x == 0) found[blockIdx.x] = size;
}

// --- Codes ---------------------------------------------------------------------------------------

struct Results {
  unsigned char* codes;       // [rows, columns]; null: not wanted
  unsigned char* transposed;  // [columns, rows]; likewise
  int64_t codes_stride, transposed_stride;
  float* inverse;
  unsigned* largest;  // the size of this tensor is collected here; null: nowhere
  float most;         // the largest number of the type
};

// Four rows of four bytes become four columns.
__device__ inline void turn(const unsigned (&rows)[4], unsigned (&columns)[4]) {
  const unsigned a = __byte_perm(rows[0], rows[1], 0x5140),
                 b = __byte_perm(rows[2], rows[3], 0x5140);
  const unsigned c = __byte_perm(rows[0], rows[1], 0x7362),
                 d = __byte_perm(rows[2], rows[3], 0x7362);
  columns[0] = __byte_perm(a, b, 0x5410);
  columns[1] = __byte_perm(a, b, 0x7632);
  columns[2] = __byte_perm(c, d, 0x5410);
  columns[3] = __byte_perm(c, d, 0x7632);
}

// A thread has eight columns of four rows, twice. In shared memory a column's words of four rows
// are permuted by the column's place, so that neither writing nor reading meets in a bank.
// REQUIRES: rows % 16 == 0, columns % 8 == 0, all of it aligned.
template <class T, class F8>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 3)
    quantize_tiles(const T* x, int64_t stride, int64_t rows, int64_t columns, Sizes sizes,
                   Results to) {
  __shared__ uint4 tile[kTile * kTile / 16];
  __shared__ unsigned shared[2][kThreads / 32];
  const int64_t across = (columns + kTile - 1) / kTile;
  const int64_t top = blockIdx.x / across * kTile, left = blockIdx.x % across * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t c = left + tx * 8;
  constexpr int kParts = sizeof(T) / 2;
  uint4 in[2][4][kParts];  // eight elements, which stay packed until they are used
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int64_t r = top + (ty + 16 * k) * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const bool inside = r < rows && c < columns;
        in[k][i][p] = inside ? reinterpret_cast<const uint4*>(x + (r + i) * stride + c)[p]
                             : uint4{0, 0, 0, 0};
      }
    }
  }
  const Scale scale(sizes.largest(shared[0]), to.most);
  if (blockIdx.x == 0 && threadIdx.x == 0) *to.inverse = scale.inverse;
  unsigned size = 0;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int64_t r = top + (ty + 16 * k) * 4;
    unsigned low[4], high[4];  // by row: codes of columns 0 to 3 and 4 to 7
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto& elements = reinterpret_cast<const T(&)[8]>(in[k][i]);
      float v[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        v[j] = number(elements[j]);
        size = max(size, size_bits(v[j]));
        v[j] *= scale.scale;
      }
      low[i] = codes_of<F8>(v[0], v[1]) | codes_of<F8>(v[2], v[3]) << 16;
      high[i] = codes_of<F8>(v[4], v[5]) | codes_of<F8>(v[6], v[7]) << 16;
      if (to.codes != nullptr && r < rows && c < columns) {
        *reinterpret_cast<uint2*>(to.codes + (r + i) * to.codes_stride + c) = {low[i], high[i]};
      }
    }
    if (to.transposed == nullptr) continue;
    unsigned* const words = reinterpret_cast<unsigned*>(tile);
    const int place = (ty + 16 * k) ^ (2 * tx);
    unsigned turned[4];
    turn(low, turned);
#pragma unroll
    for (int j = 0; j < 4; ++j) words[(tx * 8 + j) * 32 + place] = turned[j];
    turn(high, turned);
#pragma unroll
    for (int j = 0; j < 4; ++j) words[(tx * 8 + 4 + j) * 32 + place] = turned[j];
  }
  if (to.largest != nullptr) {
    size = over_block(size, shared[1]);
    if (threadIdx.x == 0) atomicMax(to.largest, size);  // in any order the same
  }
  if (to.transposed == nullptr) return;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int column = (threadIdx.x + k * kThreads) / 8, sixteen = threadIdx.x % 8;
    const int key = column / 8 * 2;
    uint4 v = tile[column * 8 + (sixteen ^ key / 4)];
    if ((key & 2) != 0) v = {v.z, v.w, v.x, v.y};
    const int64_t r = top + sixteen * 16;
    if (left + column < columns && r < rows) {
      *reinterpret_cast<uint4*>(to.transposed + (left + column) * to.transposed_stride + r) = v;
    }
  }
}

// The same of tensors that lie in any way, an element at a time. Loops: x, codes, transposed.
template <class T, class F8>
__global__ void __launch_bounds__(kThreads)
    quantize_elements(const T* x, Loops<3> loops, Sizes sizes, Results to) {
  __shared__ unsigned shared[2][kThreads / 32];
  const Scale scale(sizes.largest(shared[0]), to.most);
  if (blockIdx.x == 0 && threadIdx.x == 0) *to.inverse = scale.inverse;
  unsigned size = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < loops.count;
       i += step) {
    int64_t at[3];
    loops.offsets(i, at);
    const float v = To<float>::of(number(x[at[0]]));
    size = max(size, size_bits(v));
    const auto code = static_cast<unsigned char>(codes_of<F8>(v * scale.scale, 0.0f));
    if (to.codes != nullptr) to.codes[at[1]] = code;
    if (to.transposed != nullptr) to.transposed[at[2]] = code;
  }
  if (to.largest == nullptr) return;
  size = over_block(size, shared[1]);
  if (threadIdx.x == 0) atomicMax(to.largest, size);
}

// One thread for each tensor.
__global__ void remember(const float* old, int64_t old_tensor, int64_t old_step, const float* sizes,
                         int64_t size_step, float* out, int64_t out_tensor, int64_t out_step,
                         int64_t tensors, int64_t length) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t >= tensors) return;
  const float newest = sizes[t * size_step];
  const int turn = size_bits(newest) < 0x7f800000u ? 1 : 0;
  for (int64_t h = length - 1; h >= turn; --h) {
    out[t * out_tensor + h * out_step] = old[t * old_tensor + (h - turn) * old_step];
  }
  if (turn == 1) out[t * out_tensor] = newest;
}

// --- Launchers -----------------------------------------------------------------------------------

// The outputs that are codes, by whether they are turned, and where the input's dimensions part.
struct Matrices {
  int codes = -1, transposed = -1;
  size_t rows = 0;  // so many factors are rows, the rest columns
};

Matrices matrices_of(const KernelArgs& args, size_t outputs) {
  Matrices m;
  const OperandDims& in = args.signature.inputs()[0];
  m.rows = in.empty() ? 0 : factors_of({in.begin(), in.end() - 1}).size();
  for (size_t o = 0; o < outputs; ++o) {
    const OperandDims& out = args.signature.outputs()[o];
    if (out == in) {
      m.codes = static_cast<int>(o);
      continue;
    }
    m.transposed = static_cast<int>(o);
    OperandDims turned = in;
    size_t turn = 0;
    for (; turned != out; ++turn) std::rotate(turned.begin(), turned.end() - 1, turned.end());
    m.rows = factors_of({in.begin(), in.end() - static_cast<int64_t>(turn)}).size();
  }
  return m;
}

template <class T, class F8>
void quantize_typed(const KernelArgs& args) {
  const auto stream = static_cast<cudaStream_t>(args.stream);
  const bool delayed = args.in.size() == 3;
  const size_t outputs = args.out.size() - 1 - (delayed ? 1 : 0);
  const int64_t index = args.attrs.integer_or("index", 0);
  const T* const x = args.in[0].as<const T>();
  Sizes sizes{nullptr, 0, 1, static_cast<const unsigned*>(args.workspace), 0};
  const float* collected = nullptr;
  float* collect = nullptr;
  int64_t collected_step = 0, collect_step = 0, tensors = 0;
  if (delayed) {
    const TensorView &history = args.in[1], &after = args.out[outputs + 1];
    sizes.history = history.as<const float>() + index * history.strides[0];
    sizes.length = history.shape[1], sizes.step = history.strides[1];
    collected = args.in[2].as<const float>(), collected_step = args.in[2].strides[0];
    collect = after.as<float>(), collect_step = after.strides[0], tensors = after.shape[0];
  }

  const auto all = factors_of(args.signature.inputs()[0]);
  const Shape from = in_strides(args, 0);
  const LoopNest<1> elements = nest_over<1>(args, all, {from});
  const auto find = [&]<int N>() {
    const auto loops = loops_of(in_vectors(elements, N));
    sizes.found_count = static_cast<int>(blocks_for(loops.count, kThreads * 4, kF8SizeBlocks));
    find_size<T, N><<<static_cast<unsigned>(sizes.found_count), kThreads, 0, stream>>>(
        x, loops, sizes, static_cast<unsigned*>(args.workspace), collected, collected_step, collect,
        collect_step, tensors);
    cuda_check(cudaGetLastError());
  };
  if (wide_loops<1>(elements, {x}, kWide<T>)) {
    find.template operator()<kWide<T>>();
  } else {
    find.template operator()<1>();
  }

  const Matrices m = matrices_of(args, outputs);
  Results to{};
  const auto codes = [&](int o) {
    return o < 0 ? nullptr : args.out[static_cast<size_t>(o)].as<unsigned char>();
  };
  to.codes = codes(m.codes), to.transposed = codes(m.transposed);
  to.inverse = args.out[outputs].as<float>();
  to.largest =
      collect == nullptr ? nullptr : reinterpret_cast<unsigned*>(collect + index * collect_step);
  to.most = std::is_same_v<F8, f8e5m2> ? 57344.0f : 448.0f;
  const auto strides = [&](int o) {
    return o < 0 ? Shape(args.extents.size(), 0) : out_strides(args, static_cast<size_t>(o));
  };
  const std::array<Shape, 3> all_strides = {from, strides(m.codes), strides(m.transposed)};
  const std::span<const int8_t> rows(all.data(), m.rows),
      columns(all.data() + m.rows, all.size() - m.rows);
  const LoopNest<3> down = nest_over<3>(args, rows, all_strides),
                    across = nest_over<3>(args, columns, all_strides);
  const auto aligned = [](const void* data, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
  };
  const bool matrix = down.sizes.size() == 1 && across.sizes.size() == 1;
  const auto d = down.inner_steps(), a = across.inner_steps();
  const bool wide =
      matrix && down.inner() % 16 == 0 && across.inner() % 8 == 0 && a[0] == 1 && d[0] % 8 == 0 &&
      aligned(x, 16) &&
      (to.codes == nullptr || (a[1] == 1 && d[1] % 8 == 0 && aligned(to.codes, 8))) &&
      (to.transposed == nullptr || (d[2] == 1 && a[2] % 16 == 0 && aligned(to.transposed, 16)));
  if constexpr (sizeof(T) <= 4) {
    if (wide) {
      const int64_t tiles = ceil_div(down.inner(), kTile) * ceil_div(across.inner(), kTile);
      to.codes_stride = d[1], to.transposed_stride = a[2];
      quantize_tiles<T, F8><<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(
          x, d[0], down.inner(), across.inner(), sizes, to);
      cuda_check(cudaGetLastError());
      return;
    }
  }
  const auto loops = loops_of(nest_over<3>(args, all, all_strides));
  quantize_elements<T, F8>
      <<<blocks_for(loops.count, kThreads, 2048), kThreads, 0, stream>>>(x, loops, sizes, to);
  cuda_check(cudaGetLastError());
}

}  // namespace

void quantize_cuda(const KernelArgs& args) {
  if (args.in[0].numel() == 0) return;
  with_gpu_float(args.in[0].dtype, [&]<class T>(T) {
    if (args.out[0].dtype == DType::kF8E5M2) return quantize_typed<T, f8e5m2>(args);
    quantize_typed<T, f8e4m3>(args);
  });
}

void size_history_cuda(const KernelArgs& args) {
  const TensorView &old = args.in[0], &sizes = args.in[1], &out = args.out[0];
  const int64_t tensors = old.shape[0];
  remember<<<blocks_for(tensors, 128), 128, 0, static_cast<cudaStream_t>(args.stream)>>>(
      old.as<const float>(), old.strides[0], old.strides[1], sizes.as<const float>(),
      sizes.strides[0], out.as<float>(), out.strides[0], out.strides[1], tensors, old.shape[1]);
  cuda_check(cudaGetLastError());
}

}  // namespace cleave
