// Scratch memory of the GPU's kernels: as functions of the call alone, in every build, so that a
// plan made without a GPU knows to the byte what a run will take. A kernel that needs some has its
// function and constants here or in a header of its own like this one, which includes no CUDA; the
// op's .cc puts it into OpDef::cuda_workspace.
#pragma once

#include <algorithm>
#include <cstdint>

#include "graph/op.h"

namespace cleave {

// Where parts of a workspace begin: libraries want it.
inline constexpr int64_t kWorkspaceAlignment = 256;
constexpr int64_t aligned_workspace(int64_t bytes) {
  return (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}

// Room for the libraries that multiply matrices, which choose their kernels by it: cuBLASLt's for a
// product, and cuDNN's for a forward of attention.
inline constexpr int64_t kProductWorkspace = int64_t{32} << 20;

// Bytes of the type in which sums of such elements are kept.
inline int64_t statistic_bytes(DType dtype) { return dtype == DType::kF64 ? 8 : 4; }

// --- Attention (more in attention_room.h) --------------------------------------------------------

// Whether runs use our own kernels on tensor cores: what a program has no room for is not used.
inline constexpr bool kTensorCoreAttention = true;

// --- Norms ---------------------------------------------------------------------------------------

// Blocks that each keep sums of columns: the multiprocessors of an H100. A constant, so that the
// same bits come out on every GPU.
inline constexpr int kNormPartials = 132;

// How many vectors of a row a thread of the backward has, `more` when something is added to its
// result; 0: the rows are too long for it.
inline int norm_vectors_a_thread(int64_t vectors, bool more) {
  return vectors <= 256 ? 1 : vectors <= 1024 ? 2 : vectors <= 2048 && !more ? 4 : 0;
}

// Of all blocks, a sum of every result but the first.
inline int64_t norm_backward_workspace(const OpCall& call) {
  const auto sums = static_cast<int64_t>(call.signature.outputs().size()) - 1;
  return kNormPartials * sums * call.in[2].shape[0] * statistic_bytes(call.in[0].dtype);
}

// --- Sums that GELU's backward keeps -------------------------------------------------------------

inline constexpr int kGeluLanes = 32;  // of a block, along a row
// Blocks that rows are divided for: many more than an H100 has at once, as blocks that begin one
// after the other read and write faster than those that go on.
inline constexpr int64_t kGeluBlocks = 1536;

// Of all parts, whose blocks have at most so many columns.
inline int64_t gelu_backward_workspace(const OpCall& call) {
  if (call.attrs.integer_or("sum", 0) == 0) return 0;
  const DType dtype = call.in[0].dtype;
  const int64_t columns = kGeluLanes * 16 / size_of(dtype);
  return std::max<int64_t>(kGeluBlocks * columns, call.in[0].shape.back()) * statistic_bytes(dtype);
}

// --- A loss and its gradient ---------------------------------------------------------------------

// Rows of scores are kept in shared memory from one to the other. A block keeps so much of a row: a
// multiprocessor has two of them, and while one reads, another writes. Longer rows are shared by a
// cluster of blocks; those that eight cannot keep are read twice.
inline constexpr int64_t kBothBlockBytes = 112 << 10;
inline constexpr int kBothBlocks = 8;
inline constexpr int64_t kBothRowBytes = kBothBlocks * kBothBlockBytes;

// --- Reductions ----------------------------------------------------------------------------------

// The blocks that results are divided into parts for: four or two for each multiprocessor of an
// H100, by their threads.
inline constexpr int64_t kReduceRowBlocks = 528, kReduceColumnBlocks = 264;

// Of reductions by columns, which take most: the parts of a block are of 32 vectors, whose states
// are 2 KiB at most (of 16 bits, with two floats a state). There are no more states than elements.
inline int64_t reduce_room(int64_t elements) {
  return std::min<int64_t>(kReduceColumnBlocks * 2048, elements * 16);
}
inline int64_t reduce_workspace(const OpCall& call) { return reduce_room(numel(call.in[0].shape)); }

// A block's share of the elements of which squares are added up. A constant: the order of
// additions, and so the bits, depend on the tensor's size and nothing else.
inline constexpr int kSquaresPiece = 32768;
inline int64_t squares_pieces(int64_t elements) {
  return (elements + kSquaresPiece - 1) / kSquaresPiece;
}
// A double for each piece.
inline int64_t sum_squares_workspace(const OpCall& call) {
  return squares_pieces(numel(call.in[0].shape)) * static_cast<int64_t>(sizeof(double));
}

// --- Rows of a table -----------------------------------------------------------------------------

// So many tokens that follow each other in the order of rows are one piece.
inline constexpr int kEmbeddingPiece = 32;

// The parts of the workspace, in bytes from its beginning.
struct EmbeddingParts {
  int64_t keys = 0, sorted_keys = 0, tokens = 0, sorted_tokens = 0, starts = 0, sums = 0;
  int64_t sort = 0, sort_bytes = 0, all = 0;
};
inline EmbeddingParts embedding_parts(int64_t tokens, int64_t rows, int64_t width,
                                      int64_t element) {
  EmbeddingParts p;
  const auto part = [&](int64_t bytes) {
    const int64_t here = p.all;
    p.all += aligned_workspace(bytes);
    return here;
  };
  p.keys = part(tokens * 4);
  p.sorted_keys = part(tokens * 4);
  p.tokens = part(tokens * 4);
  p.sorted_tokens = part(tokens * 4);
  p.starts = part((rows + 1) * 4);
  p.sums = part((tokens + kEmbeddingPiece - 1) / kEmbeddingPiece * 2 * width * element);
  // CUB says on the device itself how much it needs: a copy of keys and values at most, and counts
  // of digits.
  p.sort_bytes = (4 << 20) + tokens * 10;
  p.sort = part(p.sort_bytes);
  return p;
}
inline int64_t embedding_backward_workspace(const OpCall& call) {
  const OperandDims& dims = call.signature.outputs()[0];
  return embedding_parts(numel(call.in[1].shape), call.extents[static_cast<size_t>(dims[0][0])],
                         call.extents[static_cast<size_t>(dims[1][0])],
                         statistic_bytes(call.in[0].dtype))
      .all;
}

// --- Copies --------------------------------------------------------------------------------------

// A reshape between two tensors of which neither is dense has a dense one between them.
inline int64_t reshape_workspace(const OpCall& call) {
  const bool through =
      !call.placed.empty() && !call.placed[0].contiguous() && !call.placed[1].contiguous();
  return through ? numel(call.in[0].shape) * size_of(call.in[0].dtype) : 0;
}

// --- Floats of 8 bits ----------------------------------------------------------------------------

// Of the search for the largest size: four for each multiprocessor of an H100, a number each.
inline constexpr int kF8SizeBlocks = 528;
inline int64_t quantize_workspace(const OpCall&) {
  return kF8SizeBlocks * static_cast<int64_t>(sizeof(unsigned));
}

// --- Experts -------------------------------------------------------------------------------------

// Of a slot of a buffer, the choices that have it: two ints.
inline constexpr int64_t kSlotOwnerBytes = 8;
inline int64_t dispatch_workspace(const OpCall& call) {
  int64_t rows = 1;
  const OperandDims& buffers = call.signature.outputs()[0];
  for (const auto& dim : buffers) {
    for (const int8_t f : dim) {
      if (f != buffers.back()[0]) rows *= call.extents[static_cast<size_t>(f)];
    }
  }
  return rows * kSlotOwnerBytes;
}

// After the shard's experts come two classes: rows of other shards' experts, and of none at all,
// which the CPU refuses.
inline constexpr int kOtherClasses = 2;
// Of rows that are sorted by expert: two offsets of each, and where each class begins.
inline int64_t expert_sorting_bytes(int64_t rows, int64_t experts) {
  return 2 * rows * int64_t{8} + (experts + kOtherClasses + 1) * int64_t{4};
}

}  // namespace cleave
