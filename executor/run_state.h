// What a checkpoint holds of a run besides its tensors, and the way of both between a runtime and a
// checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/snapshot.h"
#include "executor/runtime.h"
#include "executor/spike_guard.h"

namespace cleave {

// Where a run stands. The generator of random numbers needs no more than the seed: it counts.
struct RunState {
  int64_t step = 0;                   // done, skipped ones among them
  int64_t samples = 0;                // sequences taken from the data
  uint64_t seed = 0;                  // of weights, data order and dropout
  std::string data;                   // the text's fingerprint
  int skipped_in_a_row = 0;           // the latest updates that were left out
  std::vector<double> losses, norms;  // that a SpikeGuard remembers
  std::string job = "{}";  // a JSON object of the caller's: what is trained; only written
};

// The checkpoint's run.json, and back. Throws Error when the text is not one.
std::string to_json_text(const RunState& state);
RunState run_state_from(std::string_view run_json);

// All parameters and states of the runtime, and where the run stands. `reuse`: its memory is taken
// where it fits.
Snapshot snapshot_of(const Runtime& runtime, const RunState& state, Snapshot reuse = {});

// Gives the runtime's parameters and states what the checkpoint holds of them, on whatever mesh it
// was written. Throws Error, naming the first, when one that must be there is missing, or one is of
// another type: nothing has
// changed then.
void restore(Runtime& runtime, const Checkpoint& checkpoint);

}  // namespace cleave
