// Kernels over all threads of a rank. Work is divided by the shapes alone, into pieces that write
// apart from each other, so the bits of a result do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "graph/kernel_args.h"
#include "graph/thread_team.h"
#include "kernels/loops.h"
#include "kernels/widest.h"

namespace cleave {

// Elements that are worth a piece of their own: some microseconds' work.
inline constexpr int64_t kPieceElements = 16384;

// How many threads a kernel has.
inline int members(const KernelArgs& args) { return args.team == nullptr ? 1 : args.team->size(); }

// Calls fn(task, member) for every task in [0, tasks).
template <class Fn>
void run_tasks(const KernelArgs& args, int64_t tasks, const Fn& fn) {
  if (args.team == nullptr || args.team->size() == 1 || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) fn(i, 0);
    return;
  }
  args.team->run(tasks, [&fn](int64_t task, int member) { fn(task, member); });
}

// Calls fn(begin, end, member) for pieces of [0, n), of `piece` each but the last.
template <class Fn>
void parallel_for(const KernelArgs& args, int64_t n, int64_t piece, const Fn& fn) {
  run_tasks(args, (n + piece - 1) / piece, [&](int64_t task, int member) {
    const int64_t begin = task * piece, end = std::min(n, begin + piece);
    fn(begin, end, member);
  });
}

// Rows of `width` elements that make one piece.
inline int64_t rows_a_piece(int64_t width, int64_t elements = kPieceElements) {
  return std::max<int64_t>(1, elements / std::max<int64_t>(width, 1));
}

// for_each_row in pieces, with vectors as wide as they come: a long innermost loop is cut too.
// fn may be called at once by several threads.
template <size_t N, class Fn>
void parallel_rows(const KernelArgs& args, const LoopNest<N>& nest, const Fn& fn) {
  const int64_t inner = nest.inner(), outer = nest.count() / std::max<int64_t>(inner, 1);
  const int64_t cuts = (inner + kPieceElements - 1) / kPieceElements;
  if (cuts > 1) {
    run_tasks(args, outer * cuts, [&](int64_t task, int) {
      auto at = nest.offsets_of_row(task / cuts);
      const auto steps = nest.inner_steps();
      const int64_t begin = task % cuts * kPieceElements;
      for (size_t i = 0; i < N; ++i) at[i] += begin * steps[i];
      widest([&] { fn(at, std::min(kPieceElements, inner - begin), steps); });
    });
    return;
  }
  parallel_for(args, outer, rows_a_piece(inner), [&](int64_t begin, int64_t end, int) {
    widest([&] { for_each_row(nest, begin, end, fn); });
  });
}

// for_each_element in pieces, for kernels in which an element of the nest is a row of `width`.
template <size_t N, class Fn>
void parallel_elements(const KernelArgs& args, const LoopNest<N>& nest, int64_t width,
                       const Fn& fn) {
  parallel_for(args, nest.count(), rows_a_piece(width), [&](int64_t begin, int64_t end, int) {
    widest([&] { for_each_element(nest, begin, end, fn); });
  });
}

// Sums of `width` numbers over many rows, for kernels that add up while they walk over rows: each
// of at most 16 blocks of rows has sums of its own, which are then added in order.
// fn(begin, end, sums) adds the rows [begin, end) to sums[0..width), which start at 0.
template <class T, class Fn>
std::vector<T> sum_over_rows(const KernelArgs& args, int64_t rows, int64_t width, const Fn& fn) {
  const int64_t block = std::max<int64_t>(16, (rows + 15) / 16);
  const int64_t blocks = std::max<int64_t>(1, (rows + block - 1) / block);
  std::vector<T> sums(static_cast<size_t>(blocks * width), T{0});
  T* const total = sums.data();
  parallel_for(args, rows, block, [&](int64_t begin, int64_t end, int) {
    T* const own = total + begin / block * width;
    widest([&] { fn(begin, end, own); });
  });
  widest([&] {
    for (int64_t b = 1; b < blocks; ++b) {
      const T* const part = total + b * width;
      for (int64_t i = 0; i < width; ++i) total[i] += part[i];
    }
  });
  sums.resize(static_cast<size_t>(width));
  return sums;
}

// copy_rows in pieces.
template <class T>
void parallel_copy(const KernelArgs& args, const LoopNest<2>& nest, const T* from, T* to) {
  parallel_rows(args, nest, [&](const auto& at, int64_t n, const auto& step) {
    copy_row(from + at[0], step[0], to + at[1], step[1], n);
  });
}

// Scratch memory of one member: the kernel's workspace is the first one's, others have their own.
template <class T>
T* workspace_of(const KernelArgs& args, int member, int64_t bytes) {
  if (member == 0) return static_cast<T*>(args.workspace);
  return static_cast<T*>(args.team->scratch(member, bytes));
}

}  // namespace cleave
