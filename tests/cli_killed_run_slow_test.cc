// A hundred kills at random moments, within a save too.
#include "tests/cli_killed_run.h"

namespace cleave {
namespace {

TEST(KilledRuns, EndAsIfNothingHadHappenedAHundredTimes) {
  testing::kill_and_resume(CLEAVE_BINARY_DIR "/bin/cleave", 100, 2);
}

}  // namespace
}  // namespace cleave
