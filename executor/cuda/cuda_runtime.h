// Runs a program on one GPU: one arena, one stream, and a step that is captured once as CUDA graphs
// and then launched, without the host waiting inside it.
#pragma once

#include "executor/runtime.h"

namespace cleave {

// The program is one rank's: it must have one rank and one stage, and no state on the host.
class CudaRuntime final : public Runtime {
 public:
  // Lays out the program's memory for the GPU's kernels, takes it from the device, runs every
  // instruction once, for what kernels find out or compile the first time, and captures the step.
  // Throws Error when there is no GPU, it is too old or has too little memory, or an op has no
  // kernel for it. Memory that nothing has written yet reads as NaN.
  explicit CudaRuntime(Program program, RunOptions options = {});
  ~CudaRuntime() override;

  void initialize() override;
  void set_data(std::string_view name, std::span<const std::byte> whole) override;
  void accumulate() override;
  void start() override;
  StepResult finish() override;
  void watch(bool on) override;
  void record(bool on) override;
  using Runtime::read_source;
  void read_source(std::string_view name, std::vector<std::byte>& whole) const override;
  void write_source(std::string_view name, std::span<const std::byte> whole) override;
  TensorType source_type(std::string_view name) const override;
  bool shares(std::string_view name) const override;
  const Program& program() const override;
  int64_t allocated_bytes() const override;
  const std::vector<double>& instruction_seconds(int64_t rank) const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cleave
