// Collectives and messages between the threads of one process: in a collective, each thread reads
// the others' memory directly; a message is copied into a box of the receiver's.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "executor/communicator.h"

namespace cleave {

// Thrown in ranks that were waiting when another rank failed. Never the first error.
class Aborted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Rendezvous;
class Mailbox;

// What one rank asks of its group. A negative axis: to meet all ranks; or, of kReceive, a message.
struct Request {
  InstrKind kind = InstrKind::kAllReduce;
  int32_t axis = -1;
  Reduction reduction = Reduction::kSum;
  std::span<const CollectiveTensor> tensors;
  Message message;
};

// What the ranks of one process share. Must outlive its communicators.
class ThreadWorld {
 public:
  // `stages` meshes: rank s * mesh.size() + r is rank r of stage s.
  explicit ThreadWorld(const Mesh& mesh, int64_t stages = 1);
  ~ThreadWorld();

  const Mesh& mesh() const { return mesh_; }  // of one stage
  // To be called when a rank has failed: every rank that waits, now or later, throws Aborted. The
  // memory of all ranks must stay valid until all of them have stopped.
  void abort();

 private:
  friend class Rendezvous;
  friend class Mailbox;
  friend class ThreadCommunicator;

  // Throws InternalError that says what every rank waits for.
  [[noreturn]] void report_deadlock() const;

  const Mesh mesh_;
  const int64_t size_;
  // How often a rank looks for the others before it sleeps. With fewer cores than ranks, who spins
  // keeps those from running that it waits for.
  const int looks_;
  std::atomic<bool> aborted_{false};
  // Ranks that wait and have not been released; when it reaches size_, nobody can release anyone.
  std::atomic<int64_t> waiting_{0};
  std::vector<std::vector<std::unique_ptr<Rendezvous>>> groups_;  // by axis, then by group
  std::vector<std::vector<size_t>> group_of_;                     // by axis, then by rank
  std::unique_ptr<Rendezvous> everyone_;
  std::vector<std::unique_ptr<Mailbox>> boxes_;  // by rank: what was sent to it
  std::vector<Request> requests_;                // by rank: what it asked for last
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(ThreadWorld& world, int64_t rank);
  void synchronize() override;

 protected:
  void all_reduce(int32_t axis, Reduction reduction,
                  std::span<const CollectiveTensor> tensors) override;
  void all_gather(int32_t axis, std::span<const CollectiveTensor> tensors) override;
  void reduce_scatter(int32_t axis, Reduction reduction,
                      std::span<const CollectiveTensor> tensors) override;
  void all_to_all(int32_t axis, std::span<const CollectiveTensor> tensors) override;
  void put(const Message& message, std::span<const std::byte> bytes) override;
  void take(const Message& message, std::span<std::byte> bytes) override;
  void shift(int32_t axis, std::span<const CollectiveTensor> tensors) override;

 private:
  // Announces the request of a collective and waits until the whole group has made the same.
  // Others' requests are read from then until the group meets again.
  Rendezvous& meet(const Request& request);
  // Copies from every rank of the group what belongs into this rank's outputs.
  void exchange(InstrKind kind, int32_t axis, std::span<const CollectiveTensor> tensors);
  // Sets peers_ to the operands of all ranks of the group for tensor `i`.
  void find_inputs(const Rendezvous& group, size_t i);

  ThreadWorld& world_;
  const int64_t rank_;
  const std::vector<int64_t> coordinates_;  // on the stage's mesh
  std::vector<const std::byte*> peers_;
  std::vector<std::byte> scratch_;  // results of small all-reduces
};

}  // namespace cleave
