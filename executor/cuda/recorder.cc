#include "executor/cuda/recorder.h"

#include "kernels/cuda/check.h"

namespace cleave {
namespace {

double seconds_between(cudaEvent_t from, cudaEvent_t to) {
  float milliseconds = 0;
  cuda_check(cudaEventElapsedTime(&milliseconds, from, to));
  return static_cast<double>(milliseconds) * 1e-3;
}

}  // namespace

StepRecorder::~StepRecorder() {
  for (auto& [key, section] : sections_) {
    for (const Marks& m : section.marks) {
      if (m.begin != nullptr) cudaEventDestroy(m.begin);
      if (m.end != nullptr) cudaEventDestroy(m.end);
    }
  }
}

void StepRecorder::capture(Section& section, const std::vector<Work>& work, cudaStream_t stream) {
  section.marks.resize(work.size());
  for (size_t i = 0; i < work.size(); ++i) {
    section.marks[i].instr = work[i].instr;
    cuda_check(cudaEventCreate(&section.marks[i].begin));
    cuda_check(cudaEventCreate(&section.marks[i].end));
  }
  section.graph = captured(stream, [&] {
    for (size_t i = 0; i < work.size(); ++i) {
      cuda_check(cudaEventRecordWithFlags(section.marks[i].begin, stream, cudaEventRecordExternal));
      work[i].launch();
      cuda_check(cudaEventRecordWithFlags(section.marks[i].end, stream, cudaEventRecordExternal));
    }
  });
}

void StepRecorder::run(int section, int32_t micro_batch, const std::vector<Work>& work,
                       cudaStream_t stream) {
  if (work.empty()) return;
  Section& s = sections_[{section, micro_batch}];
  if (s.graph == nullptr) capture(s, work, stream);
  cuda_check(cudaGraphLaunch(s.graph.get(), stream));
  ran_.emplace_back(section, micro_batch);
}

std::vector<InstrRun> StepRecorder::take(cudaEvent_t begun) {
  std::vector<InstrRun> runs;
  for (const auto& key : ran_) {
    for (const Marks& m : sections_.at(key).marks) {
      runs.push_back(
          {m.instr, key.second, seconds_between(begun, m.begin), seconds_between(m.begin, m.end)});
    }
  }
  ran_.clear();
  return runs;
}

}  // namespace cleave
