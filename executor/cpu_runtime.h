// Runs a program on one machine: a rank is a thread with an arena of its own, and the team of
// threads that share its kernels' work.
#pragma once

#include "executor/runtime.h"

namespace cleave {

class CpuRuntime final : public Runtime {
 public:
  // Checks the program, lays out its memory unless that is done, and starts the threads. Memory
  // that no kernel has written yet reads as NaN.
  explicit CpuRuntime(Program program, RunOptions options = {});
  ~CpuRuntime() override;

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
  const Program& program() const override;
  const std::vector<double>& instruction_seconds(int64_t rank) const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cleave
