// A run that is killed goes on from its last checkpoint to the very same end. The slow test does it
// a hundred times.
#include "tests/cli_killed_run.h"

namespace cleave {
namespace {

TEST(KilledRuns, EndAsIfNothingHadHappened) {
  testing::kill_and_resume(CLEAVE_BINARY_DIR "/bin/cleave", 8, 1);
}

}  // namespace
}  // namespace cleave
