// Runs a program on one machine: a rank is a thread with an arena of its own, and the team of
// threads that share its kernels' work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "executor/communicator.h"
#include "executor/program.h"

namespace cleave {

struct RunOptions {
  uint64_t seed = 0;
  // After every step, compare the outputs of all ranks bit by bit; InternalError when they differ.
  bool compare_ranks = false;
  bool check = true;  // false: a test runs a program that does not compose
  int threads = 0;    // of each rank; 0: the machine's cores shared out among the ranks
  bool time_instructions = false;
};

struct StepOutput {
  std::string name;
  Shape shape;
  std::vector<double> values;
};

struct StepResult {
  std::vector<StepOutput> outputs;
  double seconds = 0;  // wall-clock, of the program alone, all micro-batches
  // As executed in all micro-batches by one rank, or in a pipeline by one of every stage together,
  // with their sends.
  std::vector<CollectiveCount> collectives;
  // When watched: the first op that made a NaN or an infinity of finite operands, with its place in
  // the model, or the parameter or state that held one; empty when there is none.
  std::string first_nonfinite;
  // The only number of this output. Throws Error when there is no such output, or it is no scalar.
  double value(std::string_view name) const;
};

class CpuRuntime {
 public:
  // Checks the program, lays out its memory unless that is done, and starts the threads. Memory
  // that no kernel has written yet reads as NaN.
  explicit CpuRuntime(Program program, RunOptions options = {});
  ~CpuRuntime();

  // Gives every parameter and state its initial value.
  void initialize();
  // Fills a data input for the next step from the whole tensor, row-major. Data do not outlive a
  // step.
  void set_data(std::string_view name, std::span<const std::byte> whole);
  // Runs the forward and the backward of one micro-batch, with the data set for it. To be called
  // for all of a step's micro-batches but the last, which step() runs. A pipeline works on several
  // at once: it keeps the data, and step() runs all.
  void accumulate();
  // Runs the program once: with several micro-batches, the last one and the update. After a failed
  // step the runtime is of no use any more.
  StepResult step();
  // Whether to look at every result for numbers that are not finite, which takes time.
  void watch(bool on);

  // A parameter or state as one whole tensor, row-major. Reading checks that ranks which hold the
  // same part hold the same bits.
  std::vector<std::byte> read_source(std::string_view name) const;
  // The same into memory that is there already; what does not fit is allocated.
  void read_source(std::string_view name, std::vector<std::byte>& whole) const;
  void write_source(std::string_view name, std::span<const std::byte> whole);
  TensorType source_type(std::string_view name) const;  // of the whole

  const Program& program() const;

  // Seconds of every instruction of the program on this rank, summed over the steps so far: of
  // collectives, waiting included. Zeros without RunOptions::time_instructions.
  const std::vector<double>& instruction_seconds(int64_t rank) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cleave
