// Runs a program step by step: on this machine's processor (cpu_runtime.h), or on its GPU
// (cuda/cuda_runtime.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "executor/communicator.h"
#include "executor/program.h"
#include "graph/error.h"

namespace cleave {

class Runtime;

// What runs it.
enum class Processor : uint8_t { kCpu, kGpu };

struct RunOptions {
  uint64_t seed = 0;
  // After every step, compare the outputs of all ranks bit by bit; InternalError when they differ.
  bool compare_ranks = false;
  bool check = true;  // false: a test runs a program that does not compose
  int threads = 0;    // of each rank; 0: the machine's cores shared out among the ranks
  bool time_instructions = false;
  // Of a GPU: products of f32 in TF32.
  bool tf32 = false;
  // Of a GPU: for measurements of what a fixed order of sums costs: attention by cuDNN, and
  // products, may add in any order, and two runs differ.
  bool any_order = false;
  // Of a GPU: before the first step of a program that trains, the algorithms of its products are
  // tried in it, if a pass has at least so many flop of products (about 2 ms of an H100); see
  // executor/cuda/product_trials.h.
  double least_tried = 1e12;
  // Is told of what takes long before the first step, in a line.
  std::function<void(const std::string&)> tell = {};
  // Of a GPU: a runtime on it, which outlives this one and never runs at the same time. Its
  // parameters and states are this one's where they are the same tensors, and what it holds only
  // during a step is this one's memory, where that is enough.
  const Runtime* beside = nullptr;
};

// Thrown when the device has too little free memory for a program.
class OutOfDeviceMemory : public Error {
 public:
  OutOfDeviceMemory(int64_t needed_bytes, int64_t free_bytes);
  const int64_t needed, free;  // bytes
};

// One run of an instruction in a step.
struct InstrRun {
  int32_t instr = 0;
  int32_t micro_batch = 0;
  double start = 0, seconds = 0;  // from the step's begin
  double share = 1;               // of a launch that ran several together
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
  // When recorded: by rank, in the order in which they ran; views do not run.
  std::vector<std::vector<InstrRun>> runs;
  // The only number of this output. Throws Error when there is no such output, or it is no scalar.
  double value(std::string_view name) const;
};

class Runtime {
 public:
  Runtime() = default;
  virtual ~Runtime() = default;
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Gives every parameter and state its initial value.
  virtual void initialize() = 0;
  // Fills a data input for the next step from the whole tensor, row-major. Data do not outlive a
  // step.
  virtual void set_data(std::string_view name, std::span<const std::byte> whole) = 0;
  // Runs the forward and the backward of one micro-batch, with the data set for it. To be called
  // for all of a step's micro-batches but the last, which step() runs. A pipeline works on several
  // at once: it keeps the data, and step() runs all.
  virtual void accumulate() = 0;
  // Runs the program once: with several micro-batches, the last one and the update. A GPU has only
  // been told to when this returns; the next step may be given to it before the results of this one
  // are asked for, but no more than one. After a failed step the runtime is of no use any more.
  virtual void start() = 0;
  // The results of the oldest step that was started and not finished, when it is done.
  virtual StepResult finish() = 0;
  // Both.
  StepResult step();
  // Whether to look at every result for numbers that are not finite, which takes time, and to note
  // when each instruction ran (StepResult::runs). Of the steps that begin from now on.
  virtual void watch(bool on) = 0;
  virtual void record(bool on) = 0;

  // A parameter or state as one whole tensor, row-major, into memory that may be there already;
  // what does not fit is allocated. Checks that ranks which hold the same part hold the same bits.
  // Throws Error when another program keeps all bits but the bf16 of a parameter
  // (ProgramSource::narrow). What is shared is not written.
  virtual void read_source(std::string_view name, std::vector<std::byte>& whole) const = 0;
  std::vector<std::byte> read_source(std::string_view name) const;
  virtual void write_source(std::string_view name, std::span<const std::byte> whole) = 0;
  virtual TensorType source_type(std::string_view name) const = 0;  // of the whole
  // Whether it is RunOptions::beside's.
  virtual bool shares(std::string_view) const { return false; }

  virtual const Program& program() const = 0;
  // What one rank has taken from its device: of a CPU, its arena; of a GPU everything that the
  // runtime allocated, beside what the driver and libraries have for themselves.
  virtual int64_t allocated_bytes() const { return program().arena_bytes; }

  // Seconds of every instruction of the program on this rank, summed over the steps so far: of
  // collectives, waiting included. Zeros without RunOptions::time_instructions.
  virtual const std::vector<double>& instruction_seconds(int64_t rank) const = 0;
};

// Checks the program and lays out its memory unless that is done. Throws Error when this build, or
// this machine, has no such processor, or it has too little memory.
std::unique_ptr<Runtime> make_runtime(Program program, Processor processor,
                                      RunOptions options = {});

}  // namespace cleave
