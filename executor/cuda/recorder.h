// When each instruction of a step ran on the GPU: by events that are captured with it, so that a
// recorded step is launched as any other, without the host in between.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "executor/cuda/captured_graph.h"
#include "executor/runtime.h"

namespace cleave {

class StepRecorder {
 public:
  StepRecorder() = default;
  ~StepRecorder();
  StepRecorder(const StepRecorder&) = delete;
  StepRecorder& operator=(const StepRecorder&) = delete;

  // Launches the instructions of a section of the step, as those of this micro-batch. They are
  // captured when that is asked for the first time.
  struct Work {
    int32_t instr = 0;
    std::function<void()> launch;  // into the stream
  };
  void run(int section, int32_t micro_batch, const std::vector<Work>& work, cudaStream_t stream);

  // Of the sections that ran since the last call, which must have ended; `begun`: when the step
  // did.
  std::vector<InstrRun> take(cudaEvent_t begun);

 private:
  struct Marks {
    int32_t instr = 0;
    cudaEvent_t begin = nullptr, end = nullptr;
  };
  struct Section {
    CapturedGraph graph;
    std::vector<Marks> marks;
  };
  void capture(Section& section, const std::vector<Work>& work, cudaStream_t stream);

  std::map<std::pair<int, int32_t>, Section> sections_;  // by section, micro-batch
  std::vector<std::pair<int, int32_t>> ran_;
};

}  // namespace cleave
