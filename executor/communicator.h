// Collectives between ranks. One Communicator is one rank's end; threads, MPI and NCCL implement
// the same interface. Every collective that is executed is counted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "executor/program.h"

namespace cleave {

// One rank's part in one tensor of a collective. The local tensors are contiguous. The tensor that
// the group holds together, which the collective's axis does not cut, has its atoms folded into
// five sizes; `in` and `out` hold the whole of it or one part of one of the five.
struct CollectiveTensor {
  const void* in = nullptr;
  void* out = nullptr;  // all-reduce: may equal `in`; all others: apart from it
  DType dtype = DType::kF32;
  std::array<int64_t, 5> sizes = {1, 1, 1, 1, 1};  // row-major
  int8_t in_cut = -1, out_cut = -1;  // which of the sizes is cut in `in`, in `out`; -1: none

  int64_t bytes() const;  // of the group's tensor
  // The sizes of the local tensor that is cut along `cut` in `ranks` parts.
  std::array<int64_t, 5> local(int8_t cut, int64_t ranks) const;
};

// Pair `pair` of a collective instruction, without pointers.
CollectiveTensor collective_tensor(const Program& program, const Instr& instr, size_t pair);

// How often one kind of collective ran on one axis, and the bytes that one rank sent. Sends to
// other chunks of a pipeline are counted too, with axis -1.
struct CollectiveCount {
  InstrKind kind = InstrKind::kAllReduce;
  int32_t axis = 0;
  int64_t count = 0;  // a grouped collective is one
  double bytes = 0;
  bool operator==(const CollectiveCount&) const = default;
};
std::string to_string(const std::vector<CollectiveCount>& counts, const Mesh& mesh);

// Bytes that one rank of `ranks` sends. `bytes`: of the tensor that the group holds together; of
// an all-to-all and a shift, of one rank's part.
double bytes_sent(InstrKind kind, int64_t bytes, int64_t ranks);

// Ordered by kind, then axis.
class CollectiveCounter {
 public:
  void add(InstrKind kind, int32_t axis, double bytes, int64_t times = 1);
  void clear() { counts_.clear(); }
  const std::vector<CollectiveCount>& counts() const { return counts_; }

 private:
  std::vector<CollectiveCount> counts_;
};

// What a rank of this stage will execute in one step, from the layouts alone.
std::vector<CollectiveCount> count_collectives(const Program& program, int32_t stage = 0);

// Names what one rank sends another: the transfer, and the micro-batch.
struct Message {
  int64_t to = 0, from = 0;  // ranks
  NodeId transfer = kNoNode;
  int64_t micro_batch = 0;
};

class Communicator {
 public:
  explicit Communicator(const Mesh& mesh) : mesh_(mesh) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // One collective on several tensors at once, with the ranks that differ from this one in `axis`
  // only. Returns when `out` is complete and nobody reads `in` any more. The results of a reduction
  // are the same bits on every rank. Throws InternalError when the ranks do not ask for the same.
  void run(InstrKind kind, int32_t axis, Reduction reduction,
           std::span<const CollectiveTensor> tensors);
  // Sends a message; returns at once, `bytes` may then change.
  void send(const Message& message, std::span<const std::byte> bytes);
  // Waits for a message, of this size.
  void receive(const Message& message, std::span<std::byte> bytes);
  // Waits for all ranks of all stages.
  virtual void synchronize() = 0;

  const std::vector<CollectiveCount>& counts() const { return counter_.counts(); }
  void reset_counts() { counter_.clear(); }

 protected:
  virtual void all_reduce(int32_t axis, Reduction reduction,
                          std::span<const CollectiveTensor> tensors) = 0;
  virtual void all_gather(int32_t axis, std::span<const CollectiveTensor> tensors) = 0;
  virtual void reduce_scatter(int32_t axis, Reduction reduction,
                              std::span<const CollectiveTensor> tensors) = 0;
  virtual void all_to_all(int32_t axis, std::span<const CollectiveTensor> tensors) = 0;
  virtual void put(const Message& message, std::span<const std::byte> bytes) = 0;
  virtual void take(const Message& message, std::span<std::byte> bytes) = 0;
  // `out` becomes the `in` of the rank before, the last one's for the first. Nothing is cut:
  // `sizes` are those of one part.
  virtual void shift(int32_t axis, std::span<const CollectiveTensor> tensors) = 0;
  const Mesh& mesh() const { return mesh_; }

 private:
  const Mesh mesh_;
  CollectiveCounter counter_;
};

}  // namespace cleave
