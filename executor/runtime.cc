#include "executor/runtime.h"

#include "executor/cpu_runtime.h"
#include "graph/number_text.h"
#ifdef CLEAVE_CUDA
#include "executor/cuda/cuda_runtime.h"
#endif

namespace cleave {

OutOfDeviceMemory::OutOfDeviceMemory(int64_t needed_bytes, int64_t free_bytes)
    : Error(fmt::format("the program needs {} of the device's memory, of which {} are free: a "
                        "smaller --batch with a larger --accumulate takes less",
                        bytes_text(static_cast<double>(needed_bytes)),
                        bytes_text(static_cast<double>(free_bytes)))),
      needed(needed_bytes),
      free(free_bytes) {}

std::vector<std::byte> Runtime::read_source(std::string_view name) const {
  std::vector<std::byte> whole;
  read_source(name, whole);
  return whole;
}

StepResult Runtime::step() {
  start();
  return finish();
}

std::unique_ptr<Runtime> make_runtime(Program program, Processor processor, RunOptions options) {
  if (processor == Processor::kCpu) {
    return std::make_unique<CpuRuntime>(std::move(program), options);
  }
#ifdef CLEAVE_CUDA
  return std::make_unique<CudaRuntime>(std::move(program), options);
#else
  fail(
      "this build of Cleave has no kernels for GPUs: build it where a CUDA toolkit 13 is "
      "installed");
#endif
}

double StepResult::value(std::string_view name) const {
  for (const StepOutput& o : outputs) {
    if (o.name != name) continue;
    if (o.values.size() != 1) fail("output '{}' is {}, not one number", name, to_string(o.shape));
    return o.values[0];
  }
  fail("there is no output '{}'", name);
}

}  // namespace cleave
