// What is written is read back, to the bit; what was there stays until what replaces it is whole.
#include "checkpoint/store.h"

#include <unistd.h>

#include <algorithm>

#include "tests/checkpoint_temporary.h"

namespace cleave {
namespace {

namespace fs = std::filesystem;

using Store = CheckpointTest;

void expect_equal(const Checkpoint& found, const Snapshot& written) {
  EXPECT_EQ(found.step(), written.step);
  EXPECT_EQ(found.run_json(), written.run_json);
  ASSERT_EQ(found.tensors().size(), written.tensors.size());
  for (const SavedTensor& t : written.tensors) {
    const ManifestTensor* tensor = found.find(t.name);
    ASSERT_NE(tensor, nullptr) << t.name;
    EXPECT_EQ(tensor->parameter, t.parameter);
    const auto bytes = found.bytes(t.name, t.type);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), t.bytes.begin(), t.bytes.end())) << t.name;
  }
}

TEST_F(Store, EverySnapshotComesBackToTheBit) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    // Small files, so that some snapshots take several.
    CheckpointStore store(path(fmt::format("s{}", seed)), seed % 2 == 0 ? 2'000 : 2'000'000'000);
    const Snapshot snapshot = random_snapshot(seed * 1'000'003, seed);
    const std::string folder = store.write(snapshot);
    EXPECT_EQ(folder, path(fmt::format("s{}/{}", seed, step_folder_name(snapshot.step))));
    EXPECT_EQ(verify(folder), std::vector<std::string>{});
    expect_equal(open_checkpoint(folder), snapshot);
    expect_equal(open_checkpoint(store.folder()), snapshot);
  }
}

TEST_F(Store, StepsAreListedNewestFirstAndTheOldestGo) {
  CheckpointStore store(path("s"));
  for (int64_t step : {5, 100, 99'999'999, 100'000'000, 7}) {
    store.write(random_snapshot(step, static_cast<uint32_t>(step)));
  }
  const auto steps = [&] {
    std::vector<int64_t> found;
    for (const CheckpointInfo& info : store.list()) {
      EXPECT_TRUE(info.complete) << info.why_not;
      EXPECT_GT(info.bytes, 0);
      found.push_back(info.step);
    }
    return found;
  };
  EXPECT_EQ(steps(), (std::vector<int64_t>{100'000'000, 99'999'999, 100, 7, 5}));
  store.keep(0);
  EXPECT_EQ(steps().size(), 5u);
  store.keep(2);
  EXPECT_EQ(steps(), (std::vector<int64_t>{100'000'000, 99'999'999}));
  store.keep(9);
  EXPECT_EQ(steps().size(), 2u);
}

}  // namespace
}  // namespace cleave
