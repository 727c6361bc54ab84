// Batches of a text: what they hold, that an epoch takes every window once, and that nothing but
// the seed and a sample's number decides about it.
#include "data/token_data.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "graph/error.h"

namespace cleave {
namespace {

class DataFile : public ::testing::Test {
 protected:
  DataFile() {
    folder_ = std::filesystem::temp_directory_path() /
              ("cleave_data_" + std::to_string(::getpid()) + "_" +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }
  ~DataFile() override { std::filesystem::remove_all(folder_); }

  std::string file(const std::string& bytes) const {
    const std::string path = (folder_ / "data").string();
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::string folder() const { return folder_.string(); }

  // No zero byte, which a text does not have; windows can be told apart by their first bytes.
  static std::string counted(size_t n) {
    std::string bytes;
    for (size_t i = 0; i < n; ++i) bytes += static_cast<char>(1 + (i * i / 7 + i) % 251);
    return bytes;
  }

 private:
  std::filesystem::path folder_;
};

std::vector<int32_t> row(const std::vector<int32_t>& numbers, size_t r, size_t sequence) {
  const auto at = numbers.begin() + static_cast<int64_t>(r * sequence);
  return {at, at + static_cast<int64_t>(sequence)};
}

TEST_F(DataFile, TheTailValidatesAndTheRestTrains) {
  const TokenData data({file(counted(1000))}, 16);
  EXPECT_EQ(data.training_tokens(), 900);
  EXPECT_EQ(data.validation_tokens(), 100);
  const std::string bytes = counted(1000);
  EXPECT_EQ(data.validation(0, 1)[0], static_cast<uint8_t>(bytes[900]));
  EXPECT_EQ(data.training(899, 1)[0], static_cast<uint8_t>(bytes[899]));
  EXPECT_EQ(data.validation_windows(), 99 / 16);
  EXPECT_EQ(data.validation_batches(4), 2);
  const TokenData none({file(counted(1000))}, 16, 0);
  EXPECT_EQ(none.training_tokens(), 1000);
  EXPECT_EQ(none.validation_batches(4), 0);
}

TEST_F(DataFile, TheTailHasASequenceWhenItCan) {
  const TokenData enough({file(counted(34))}, 16);
  EXPECT_EQ(enough.validation_tokens(), 17);
  EXPECT_EQ(enough.training_tokens(), 17);
  EXPECT_EQ(enough.validation_windows(), 1);
  EXPECT_EQ(enough.training_windows(), 1);
  const TokenData short_of_it({file(counted(33))}, 16);
  EXPECT_EQ(short_of_it.validation_tokens(), 0);
  EXPECT_EQ(short_of_it.training_windows(), 1);
}

TEST_F(DataFile, TargetsAreTheNextTokens) {
  const std::string bytes = counted(500);
  const TokenData data({file(bytes)}, 8);
  const Batch batch = data.training_batch(3, {.batch = 5, .seed = 4});
  ASSERT_EQ(batch.tokens.size(), 40u);
  ASSERT_EQ(batch.targets.size(), 40u);
  for (size_t r = 0; r < 5; ++r) {
    std::vector<int32_t> both = row(batch.tokens, r, 8);
    both.push_back(batch.targets[r * 8 + 7]);
    EXPECT_EQ(row(batch.targets, r, 8), std::vector<int32_t>(both.begin() + 1, both.end()));
    std::string found;
    for (int32_t t : both) found += static_cast<char>(t);
    EXPECT_NE(bytes.find(found), std::string::npos);
    EXPECT_LE(bytes.find(found) + found.size(), static_cast<size_t>(data.training_tokens()));
  }
}

// Where each sequence of a batch begins in the training text, whose windows all differ.
std::vector<size_t> starts(const TokenData& data, const Batch& batch) {
  const auto sequence = static_cast<size_t>(data.sequence());
  std::vector<size_t> result;
  for (size_t r = 0; r * sequence < batch.tokens.size(); ++r) {
    const std::vector<int32_t> want = row(batch.tokens, r, sequence);
    const std::vector<int32_t> text = data.training(0, data.training_tokens());
    result.push_back(static_cast<size_t>(
        std::search(text.begin(), text.end(), want.begin(), want.end()) - text.begin()));
  }
  return result;
}

TEST_F(DataFile, AnEpochTakesEveryWindowOnceInAnOrderOfItsOwn) {
  const TokenData data({file(counted(1700))}, 12);
  const int64_t windows = data.training_windows();
  ASSERT_EQ(windows, (1530 - 1) / 12 - 1);
  std::vector<std::vector<size_t>> epochs;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<size_t> at;
    for (int64_t i = 0; i < windows; ++i) {
      at.push_back(
          starts(data, data.training_batch(epoch * windows + i, {.batch = 1, .seed = 9}))[0]);
    }
    const std::set<size_t> sorted(at.begin(), at.end());
    ASSERT_EQ(sorted.size(), static_cast<size_t>(windows));
    for (size_t start : sorted) EXPECT_EQ(start % 12, *sorted.begin() % 12);
    EXPECT_LT(*sorted.begin(), 24u);
    EXPECT_FALSE(std::is_sorted(at.begin(), at.end()));
    epochs.push_back(at);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST_F(DataFile, SamplesDoNotDependOnHowTheyAreBatched) {
  const TokenData data({file(counted(1700))}, 3);  // short: some rows are given their only mask
  for (const Targets targets : {Targets::kNextToken, Targets::kMaskedTokens}) {
    std::vector<int32_t> ones, sixes;
    for (int64_t s = 0; s < 12; ++s) {
      const Batch b = data.training_batch(20 * s, {.batch = 20, .targets = targets, .seed = 5});
      ones.insert(ones.end(), b.tokens.begin(), b.tokens.end());
    }
    for (int64_t s = 0; s < 2; ++s) {
      const Batch b = data.training_batch(120 * s, {.batch = 120, .targets = targets, .seed = 5});
      sixes.insert(sixes.end(), b.tokens.begin(), b.tokens.end());
    }
    EXPECT_EQ(ones, sixes);
  }
  const Batch other = data.training_batch(0, {.batch = 6, .seed = 6});
  EXPECT_NE(data.training_batch(0, {.batch = 6, .seed = 5}).tokens, other.tokens);
}

TEST_F(DataFile, MasksAreBerts) {
  const TokenData data({file(counted(40000))}, 64);
  for (const int64_t vocab : {384, 256}) {
    const int32_t mask = vocab == 384 ? 256 : 255;
    int64_t positions = 0, chosen = 0, masked = 0, kept = 0, changed = 0;
    for (int64_t step = 0; step < 20; ++step) {
      const BatchOptions plain{.batch = 16, .vocab = vocab, .seed = 3};
      BatchOptions options = plain;
      options.targets = Targets::kMaskedTokens;
      const Batch original = data.training_batch(step * 16, plain);
      const Batch batch = data.training_batch(step * 16, options);
      for (size_t i = 0; i < batch.tokens.size(); ++i) {
        ++positions;
        ASSERT_GE(batch.tokens[i], 0);
        ASSERT_LT(batch.tokens[i], vocab);
        if (batch.targets[i] == kNoTarget) {
          ASSERT_EQ(batch.tokens[i], original.tokens[i]);
          continue;
        }
        ASSERT_EQ(batch.targets[i], original.tokens[i]);
        ++chosen;
        (batch.tokens[i] == mask                 ? masked
         : batch.tokens[i] == original.tokens[i] ? kept
                                                 : changed)++;
      }
    }
    const auto share = [](int64_t part, int64_t of) {
      return static_cast<double>(part) / static_cast<double>(of);
    };
    EXPECT_NEAR(share(chosen, positions), 0.15, 0.01);
    EXPECT_NEAR(share(masked, chosen), 0.8, 0.03);
    EXPECT_NEAR(share(kept, chosen), 0.1, 0.02);
    EXPECT_NEAR(share(changed, chosen), 0.1, 0.02);
  }
}

TEST_F(DataFile, EveryMaskedRowHasATarget) {
  const TokenData data({file(counted(200))}, 3);
  for (int64_t sample = 0; sample < 200; ++sample) {
    const Batch b =
        data.training_batch(sample, {.batch = 1, .targets = Targets::kMaskedTokens, .seed = 1});
    EXPECT_LT(std::count(b.targets.begin(), b.targets.end(), kNoTarget), 3);
  }
}

TEST_F(DataFile, ValidationIsInOrderAndFilledUpFromTheStart) {
  const std::string bytes = counted(1000);
  const TokenData data({file(bytes)}, 16);
  std::vector<int32_t> all;
  for (int64_t b = 0; b < 2; ++b) {
    const Batch batch = data.validation_batch(b, {.batch = 4});
    all.insert(all.end(), batch.tokens.begin(), batch.tokens.end());
  }
  for (size_t i = 0; i < all.size(); ++i) {
    const size_t window = i / 16 % 6;
    EXPECT_EQ(all[i], static_cast<uint8_t>(bytes[900 + window * 16 + i % 16]));
  }
}

TEST(Permuted, IsAPermutationForAnySizeAndKey) {
  for (const int64_t n : {1, 2, 3, 4, 5, 16, 17, 100, 255, 1000}) {
    std::set<std::vector<int64_t>> orders;
    for (const uint64_t stream : {1, 2, 3}) {
      std::vector<int64_t> order;
      for (int64_t i = 0; i < n; ++i) order.push_back(permuted(i, n, 11, stream));
      std::vector<int64_t> sorted = order;
      std::sort(sorted.begin(), sorted.end());
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(sorted[static_cast<size_t>(i)], i);
      orders.insert(order);
    }
    if (n >= 16) {
      EXPECT_EQ(orders.size(), 3u);
    }
  }
}

// Over many keys, every element is equally likely to come first.
TEST(Permuted, LeavesNoElementBehind) {
  std::vector<int> first(10, 0);
  for (uint64_t stream = 0; stream < 5000; ++stream) {
    ++first[static_cast<size_t>(permuted(0, 10, 3, stream))];
  }
  for (int count : first) EXPECT_NEAR(count, 500, 120);
}

}  // namespace
}  // namespace cleave
