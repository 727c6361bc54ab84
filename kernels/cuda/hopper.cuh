// Instructions of compute capability 9.0a that CUDA C++ has no words for: tiles that the copy
// engine moves between memory and shared memory, barriers that count what has arrived, and products
// of tiles by a warpgroup (four warps). See the PTX manual under the instructions' names.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/prelude.cuh"

namespace cleave::hopper {

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// The first multiple of 1024 bytes in a block's shared memory.
__device__ inline unsigned char* aligned_shared(unsigned char* raw) {
  return raw + (1024 - shared_address(raw) % 1024) % 1024;
}

// --- Barriers ----------------------------------------------------------------------------------

// In shared memory. A phase ends when so many have arrived and all expected bytes are there; phases
// have parity 0, 1, 0, ...
struct Barrier {
  uint64_t state;

  __device__ void init(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)),
                 "r"(arrivals));
  }
  __device__ void arrive() {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
  }
  // Arrives, and lets the phase wait for so many bytes.
  __device__ void expect(uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
        "r"(bytes)
        : "memory");
  }
  // Arrives at the barrier in the same place of another block of the cluster, or of this one. For
  // who has only read: what it has written need not be seen there.
  __device__ void arrive_at(uint32_t block) {
    asm volatile(
        "{\n.reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(this)),
        "r"(block)
        : "memory");
  }
  // Until the phase of this parity has ended.
  __device__ void wait(uint32_t parity) {
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(shared_address(this)), "r"(parity)
          : "memory");
    }
  }
};

// Where a thread is in a ring of kStages stages, each with a barrier of what fills it and one of
// what empties it. Who fills waits for the parity before: that of an empty ring has ended.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  __device__ void skip(int stages) {
    const int to = stage + stages;
    stage = to % kStages, parity ^= static_cast<uint32_t>(to / kStages) & 1;
  }
  __device__ int last() const { return stage == 0 ? kStages - 1 : stage - 1; }
};

// Makes initialised barriers known to the copy engine; before the threads meet.
__device__ inline void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Ordinary writes to shared memory become visible to the copy engine and to products; before the
// threads meet.
__device__ inline void shared_written() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// The threads of one warpgroup meet. `id`: 1 to 15.
__device__ inline void meet_warpgroup(int id) {
  asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory");
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- Clusters ------------------------------------------------------------------------------------

__device__ inline uint32_t rank_in_cluster() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of a cluster.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// --- Copies ------------------------------------------------------------------------------------

// The box of a tensor of four dimensions that begins there, the innermost first. Elements outside
// of the tensor are zeros.
__device__ inline void load_box(void* to, const CUtensorMap& map, Barrier& barrier, int x0, int x1,
                                int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}
// The same, to the same place of several blocks of a cluster, by bits, each of which learns of it
// by its own barrier.
__device__ inline void load_box_to(uint16_t blocks, void* to, const CUtensorMap& map,
                                   Barrier& barrier, int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "h"(blocks), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}
// A multiple of 16 bytes, both ends aligned to 16.
__device__ inline void load_bytes(void* to, const void* from, uint32_t bytes, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
}
// Elements outside of the tensor are not written.
__device__ inline void store_box(const CUtensorMap& map, const void* from, int x0, int x1, int x2,
                                 int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
          "l"(&map),
      "r"(shared_address(from)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}
// What this thread has stored since the last call is one group.
__device__ inline void end_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// All but the last so many groups of this thread's are read out of shared memory.
template <int kGroups = 0>
__device__ inline void stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}

// Four matrices [8, 8] of 16-bit numbers, in shared memory and, two numbers to a register, as a
// product has its sums: lane l has row l / 4, columns 2 (l % 4) and on, of each. `row`: address of
// the 16 bytes of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&x)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(row)
               : "memory");
}
__device__ inline void store_matrices(uint32_t row, const uint32_t (&x)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
               "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
}

// --- Tiles -------------------------------------------------------------------------------------

// A tile [kRows, kWidth] of 16-bit numbers in shared memory, for the copy engine and for products:
// chunks of kChunk columns, one after the other, [kRows, kChunk] each, whose 16-byte pieces are
// permuted within 8 rows as boxes with this swizzle are. Begins at a multiple of 1024 bytes.
template <int kRowsOfTile, int kWidthOfTile>
struct Tile {
  static constexpr int kRows = kRowsOfTile, kWidth = kWidthOfTile;
  static constexpr int kChunk = kWidth % 64 == 0 ? 64 : 32, kChunks = kWidth / kChunk;
  static constexpr int kRowBytes = 2 * kChunk, kChunkBytes = kRows * kRowBytes;
  static constexpr int kBytes = kChunks * kChunkBytes;
  static_assert(kWidth % 32 == 0 && kRows % 64 == 0);

  // Descriptors of a product's operand. The low half is an address in 16 bytes, and the step from
  // chunk to chunk; the high one the step from 8 rows to the next 8, and the swizzle. An address is
  // encoded once: what is between products has to be little.
  static constexpr uint32_t kHigh = 8 * kRowBytes / 16 | (kChunk == 64 ? 1u : 2u) << 30;
  static __device__ uint32_t base(const void* tile) {
    return (shared_address(tile) & 0x3ffff) >> 4;
  }
  static __device__ uint64_t descriptor(uint32_t base, uint32_t offset, uint32_t chunks) {
    const uint32_t low = base + (offset / 16 | chunks << 16);
    uint64_t whole;
    asm("mov.b64 %0, {%1, %2};" : "=l"(whole) : "r"(low), "r"(kHigh));
    return whole;
  }
  // Columns 16 k, ..., which are summed over, of all rows.
  static __device__ uint64_t along(uint32_t base, int k) {
    return descriptor(base,
                      static_cast<uint32_t>(16 * k / kChunk * kChunkBytes + 32 * k % kRowBytes), 1);
  }
  // Rows 16 k, ..., which are summed over, of all columns.
  static __device__ uint64_t across(uint32_t base, int k) {
    return descriptor(base, static_cast<uint32_t>(16 * k * kRowBytes), kChunkBytes / 16);
  }
  // Where an element is, in bytes from the beginning.
  static __device__ uint32_t place(int row, int column) {
    const int piece = column % kChunk / 8;
    const int moved = kChunk == 64 ? piece ^ row % 8 : piece ^ row / 2 % 4;
    return static_cast<uint32_t>(column / kChunk * kChunkBytes + row * kRowBytes + 16 * moved +
                                 2 * (column % 8));
  }
};

// All chunks of a tile, from row x1 of matrix (x2, x3); kChunks boxes.
template <class Shape>
__device__ inline void load_tile(void* to, const CUtensorMap& map, Barrier& barrier, int x1, int x2,
                                 int x3) {
#pragma unroll
  for (int c = 0; c < Shape::kChunks; ++c) {
    load_box(static_cast<char*>(to) + c * Shape::kChunkBytes, map, barrier, c * Shape::kChunk, x1,
             x2, x3);
  }
}
template <class Shape>
__device__ inline void store_tile(const CUtensorMap& map, const void* from, int x1, int x2,
                                  int x3) {
#pragma unroll
  for (int c = 0; c < Shape::kChunks; ++c) {
    store_box(map, static_cast<const char*>(from) + c * Shape::kChunkBytes, c * Shape::kChunk, x1,
              x2, x3);
  }
  end_stores();
}

// --- Products ----------------------------------------------------------------------------------

// Registers are ready to be operands of the products that follow.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Those issued since the last call are one group.
__device__ inline void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// At most so many groups are still at work.
template <int kGroups>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// Keeps the compiler from moving the registers' other uses over this place.
template <int kN>
__device__ inline void hold(float (&d)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The same number, of which the compiler knows nothing: what is computed of it is computed here,
// and not kept in registers across a loop.
__device__ inline int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// sums[64, N] (+)= a[64, 16] b[16, N], of numbers of type T. A thread's numbers of the sums: for
// j < N / 8, number 4 j + 2 i + c is at row 16 warp + lane / 4 + 8 i, column 8 j + 2 (lane % 4) +
// c. Of a in registers, the same with 16 columns: two to a register, [0] j = 0, i = 0; [1] i = 1;
// [2] j = 1.
#define CLEAVE_R8(a, b, c, d, e, f, g, h) \
  "%" #a ", %" #b ", %" #c ", %" #d ", %" #e ", %" #f ", %" #g ", %" #h
#define CLEAVE_R32                                             \
  CLEAVE_R8(0, 1, 2, 3, 4, 5, 6, 7)                            \
  ", " CLEAVE_R8(8, 9, 10, 11, 12, 13, 14, 15) ", " CLEAVE_R8( \
      16, 17, 18, 19, 20, 21, 22, 23) ", " CLEAVE_R8(24, 25, 26, 27, 28, 29, 30, 31)
#define CLEAVE_R48                                                                                 \
  CLEAVE_R32 ", " CLEAVE_R8(32, 33, 34, 35, 36, 37, 38, 39) ", " CLEAVE_R8(40, 41, 42, 43, 44, 45, \
                                                                           46, 47)
#define CLEAVE_R64                                                                                 \
  CLEAVE_R48 ", " CLEAVE_R8(48, 49, 50, 51, 52, 53, 54, 55) ", " CLEAVE_R8(56, 57, 58, 59, 60, 61, \
                                                                           62, 63)
#define CLEAVE_R96                                                                              \
  CLEAVE_R64 ", " CLEAVE_R8(64, 65, 66, 67, 68, 69, 70, 71) ", " CLEAVE_R8(                     \
      72, 73, 74, 75, 76, 77, 78, 79) ", " CLEAVE_R8(80, 81, 82, 83, 84, 85, 86,                \
                                                     87) ", " CLEAVE_R8(88, 89, 90, 91, 92, 93, \
                                                                        94, 95)
#define CLEAVE_R128                                                             \
  CLEAVE_R96 ", " CLEAVE_R8(96, 97, 98, 99, 100, 101, 102, 103) ", " CLEAVE_R8( \
      104, 105, 106, 107, 108, 109, 110,                                        \
      111) ", " CLEAVE_R8(112, 113, 114, 115, 116, 117, 118,                    \
                          119) ", " CLEAVE_R8(120, 121, 122, 123, 124, 125, 126, 127)
#define CLEAVE_D8(d, i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define CLEAVE_D32(d) CLEAVE_D8(d, 0), CLEAVE_D8(d, 8), CLEAVE_D8(d, 16), CLEAVE_D8(d, 24)
#define CLEAVE_D48(d) CLEAVE_D32(d), CLEAVE_D8(d, 32), CLEAVE_D8(d, 40)
#define CLEAVE_D64(d) CLEAVE_D48(d), CLEAVE_D8(d, 48), CLEAVE_D8(d, 56)
#define CLEAVE_D96(d) \
  CLEAVE_D64(d), CLEAVE_D8(d, 64), CLEAVE_D8(d, 72), CLEAVE_D8(d, 80), CLEAVE_D8(d, 88)
#define CLEAVE_D128(d)                                                                   \
  CLEAVE_D64(d), CLEAVE_D8(d, 64), CLEAVE_D8(d, 72), CLEAVE_D8(d, 80), CLEAVE_D8(d, 88), \
      CLEAVE_D8(d, 96), CLEAVE_D8(d, 104), CLEAVE_D8(d, 112), CLEAVE_D8(d, 120)

// Operands behind the sums: a and b (%i and %j, descriptors), whether to add (%k), a's layout (%l)
// and b's (%m).
#define CLEAVE_PRODUCT_SS(n, type, regs, outs, i, j, k, l, m)                                      \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #k                                             \
               ", 0;\n"                                                                            \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" regs "}, %" #i \
               ", %" #j ", p, 1, 1, %" #l ", %" #m ";\n}"                                          \
               : outs                                                                              \
               : "l"(a), "l"(b), "r"(add), "n"(kAcrossA), "n"(kAcross))
// Behind the sums: four registers of a (%i to %m), then b, whether to add, b's layout.
#define CLEAVE_PRODUCT_RS(n, type, regs, outs, i0, i1, i2, i3, j, k, l)                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #k                                      \
               ", 0;\n"                                                                     \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" regs    \
               "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #j ", p, 1, 1, %" #l ";\n}" \
               : outs                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kAcross))

// kAcross: 0, b's tile is [N, 16] (Tile::along); 1, [16, N] (Tile::across). kAcrossA: likewise of
// a.
template <class T, int kAcross, int kN, int kAcrossA = 0>
__device__ inline void product(float (&d)[kN], uint64_t a, uint64_t b, int add) {
  constexpr bool kBf16 = sizeof(T) == 2 && __is_same(T, bf16);
  if constexpr (kN == 32) {
    if constexpr (kBf16) {
      CLEAVE_PRODUCT_SS(64, "bf16", CLEAVE_R32, CLEAVE_D32(d), 32, 33, 34, 35, 36);
    } else {
      CLEAVE_PRODUCT_SS(64, "f16", CLEAVE_R32, CLEAVE_D32(d), 32, 33, 34, 35, 36);
    }
  } else if constexpr (kN == 64) {
    if constexpr (kBf16) {
      CLEAVE_PRODUCT_SS(128, "bf16", CLEAVE_R64, CLEAVE_D64(d), 64, 65, 66, 67, 68);
    } else {
      CLEAVE_PRODUCT_SS(128, "f16", CLEAVE_R64, CLEAVE_D64(d), 64, 65, 66, 67, 68);
    }
  } else if constexpr (kN == 96) {
    if constexpr (kBf16) {
      CLEAVE_PRODUCT_SS(192, "bf16", CLEAVE_R96, CLEAVE_D96(d), 96, 97, 98, 99, 100);
    } else {
      CLEAVE_PRODUCT_SS(192, "f16", CLEAVE_R96, CLEAVE_D96(d), 96, 97, 98, 99, 100);
    }
  } else {
    static_assert(kN == 128);
    if constexpr (kBf16) {
      CLEAVE_PRODUCT_SS(256, "bf16", CLEAVE_R128, CLEAVE_D128(d), 128, 129, 130, 131, 132);
    } else {
      CLEAVE_PRODUCT_SS(256, "f16", CLEAVE_R128, CLEAVE_D128(d), 128, 129, 130, 131, 132);
    }
  }
}
template <class T, int kAcross, int kN>
__device__ inline void product(float (&d)[kN], const uint32_t (&a)[4], uint64_t b, int add) {
  constexpr bool kBf16 = sizeof(T) == 2 && __is_same(T, bf16);
  if constexpr (kN == 32) {
    if constexpr (kBf16) {
      CLEAVE_PRODUCT_RS(64, "bf16", CLEAVE_R32, CLEAVE_D32(d), 32, 33, 34, 35, 36, 37, 38);
    } else {
      CLEAVE_PRODUCT_RS(64, "f16", CLEAVE_R32, CLEAVE_D32(d), 32, 33, 34, 35, 36, 37, 38);
    }
  } else if constexpr (kN == 48) {
    if constexpr (kBf16) {
      CLEAVE_PRODUCT_RS(96, "bf16", CLEAVE_R48, CLEAVE_D48(d), 48, 49, 50, 51, 52, 53, 54);
    } else {
      CLEAVE_PRODUCT_RS(96, "f16", CLEAVE_R48, CLEAVE_D48(d), 48, 49, 50, 51, 52, 53, 54);
    }
  } else {
    static_assert(kN == 64);
    if constexpr (kBf16) {
      CLEAVE_PRODUCT_RS(128, "bf16", CLEAVE_R64, CLEAVE_D64(d), 64, 65, 66, 67, 68, 69, 70);
    } else {
      CLEAVE_PRODUCT_RS(128, "f16", CLEAVE_R64, CLEAVE_D64(d), 64, 65, 66, 67, 68, 69, 70);
    }
  }
}

#undef CLEAVE_R8
#undef CLEAVE_R32
#undef CLEAVE_R48
#undef CLEAVE_R64
#undef CLEAVE_R96
#undef CLEAVE_R128
#undef CLEAVE_D8
#undef CLEAVE_D32
#undef CLEAVE_D48
#undef CLEAVE_D64
#undef CLEAVE_D96
#undef CLEAVE_D128
#undef CLEAVE_PRODUCT_SS
#undef CLEAVE_PRODUCT_RS

// Of four threads side by side, thread i gets all numbers i.
__device__ inline void transpose_quad(uint32_t (&x)[4]) {
  const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x % 4 >= 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
    x[i] = odd ? got : x[i];
    x[i + 1] = odd ? x[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(~0u, upper ? x[i] : x[i + 2], 2);
    x[i] = upper ? got : x[i];
    x[i + 2] = upper ? x[i + 2] : got;
  }
}

// The first operand of products whose columns 16 k, ... are these of sums, as halves.
template <class T, int kN>
__device__ inline void operand_of(const float (&sums)[kN], uint32_t (&a)[kN / 8][4]) {
#pragma unroll
  for (int k = 0; k < kN / 8; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[k][i] = pair<T>(sums[8 * k + 2 * i], sums[8 * k + 2 * i + 1]);
  }
}

}  // namespace cleave::hopper
