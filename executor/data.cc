#include "executor/data.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "graph/error.h"
#include "graph/philox.h"

namespace cleave {

struct TokenData::Mapping {
  explicit Mapping(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) {
      fail("cannot read the data '{}': {}; name a text file, one token a byte", path,
           std::strerror(errno));
    }
    struct stat status {};
    ::fstat(file, &status);
    if (!S_ISREG(status.st_mode)) {
      ::close(file);
      fail("cannot read the data '{}': it is not a file; name a text file, one token a byte", path);
    }
    size = static_cast<size_t>(status.st_size);
    if (size > 0) data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
    const int error = errno;
    ::close(file);
    if (data == MAP_FAILED) fail("cannot read the data '{}': {}", path, std::strerror(error));
  }
  ~Mapping() {
    if (data != nullptr) ::munmap(data, size);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  void* data = nullptr;
  size_t size = 0;
};

TokenData::TokenData(const std::string& path, int64_t sequence, double validation_share)
    : path_(path), sequence_(sequence), mapping_(std::make_shared<const Mapping>(path)) {
  CLEAVE_ASSERT(sequence > 0 && validation_share >= 0 && validation_share < 1,
                "sequences of {}, {} of them to validate on", sequence, validation_share);
  const int64_t total = static_cast<int64_t>(mapping_->size), least = sequence + 1;
  if (total == 0) fail("the data '{}' are empty; name a text file, one token a byte", path);
  if (total < least) {
    fail(
        "the data '{}' have {} bytes, but one sequence of {} needs {}; take more data, or --set "
        "sequence={}",
        path, total, sequence, least, std::max<int64_t>(total - 1, 1));
  }
  int64_t tail = 0;
  if (validation_share > 0 && total >= 2 * least) {
    tail = static_cast<int64_t>(std::llround(validation_share * static_cast<double>(total)));
    tail = std::clamp(tail, least, total - least);
  }
  training_bytes_ = static_cast<size_t>(total - tail);
}

std::span<const uint8_t> TokenData::bytes() const {
  return {static_cast<const uint8_t*>(mapping_->data), mapping_->size};
}

void TokenData::check_vocab(int64_t vocab) const {
  if (vocab >= 256) return;
  const auto all = bytes();
  const auto outside = std::find_if(all.begin(), all.end(), [=](uint8_t b) { return b >= vocab; });
  if (outside == all.end()) return;
  fail(
      "the data '{}' hold byte {} at offset {}, but the model knows tokens 0 to {}; --set "
      "vocab=256 "
      "takes any file",
      path_, *outside, outside - all.begin(), vocab - 1);
}

// With more than one window, one is given up for the offset's freedom.
int64_t TokenData::training_windows() const {
  return std::max<int64_t>((static_cast<int64_t>(training_bytes_) - 1) / sequence_ - 1, 1);
}

int64_t TokenData::validation_windows() const {
  return std::max<int64_t>((static_cast<int64_t>(validation().size()) - 1) / sequence_, 0);
}

int64_t TokenData::validation_batches(int64_t batch) const {
  return (validation_windows() + batch - 1) / batch;
}

namespace {

constexpr uint64_t kOrder = stream_of("data.order"), kOffset = stream_of("data.offset"),
                   kTrainingMask = stream_of("data.mask"),
                   kValidationMask = stream_of("data.validation_mask");

// Which sequence of which text goes where in a batch.
struct Row {
  std::span<const uint8_t> text;  // sequence + 1 bytes
  int64_t sample = 0;             // its number in the run: what its masks are drawn by
};

PhiloxBlock mask_draw(const Row& row, int64_t position, int64_t sequence, uint64_t seed,
                      uint64_t stream) {
  return philox_block(seed, stream, static_cast<uint64_t>(row.sample * sequence + position));
}

void add_masked(Batch& batch, std::span<const Row> rows, const BatchOptions& options,
                uint64_t stream) {
  const auto sequence = static_cast<int64_t>(rows[0].text.size()) - 1;
  const int64_t bytes = std::min<int64_t>(options.vocab, 256);
  const auto mask = static_cast<int32_t>(options.vocab > 256 ? 256 : options.vocab - 1);
  const auto choose = [&](size_t at, const PhiloxBlock& draw) {
    batch.targets[at] = batch.tokens[at];
    const double fate = unit_interval(draw[1]);
    if (fate < 0.8) {
      batch.tokens[at] = mask;
    } else if (fate < 0.9) {
      batch.tokens[at] = static_cast<int32_t>(unit_interval(draw[2]) * static_cast<double>(bytes));
    }
  };
  size_t chosen = 0, least = 0;
  uint32_t smallest = UINT32_MAX;
  PhiloxBlock least_draw{};
  for (const Row& row : rows) {
    for (int64_t i = 0; i < sequence; ++i) {
      const size_t at = batch.tokens.size();
      batch.tokens.push_back(row.text[static_cast<size_t>(i)]);
      batch.targets.push_back(kNoTarget);
      const PhiloxBlock draw = mask_draw(row, i, sequence, options.seed, stream);
      if (draw[0] < smallest) smallest = draw[0], least = at, least_draw = draw;
      if (unit_interval(draw[0]) >= 0.15) continue;
      choose(at, draw);
      ++chosen;
    }
  }
  // The loss is a mean over what was chosen: a batch without a target would have none.
  if (chosen == 0) choose(least, least_draw);
}

Batch make_batch(std::span<const Row> rows, const BatchOptions& options, uint64_t mask_stream) {
  Batch batch;
  if (options.targets == Targets::kMaskedTokens) {
    add_masked(batch, rows, options, mask_stream);
    return batch;
  }
  for (const Row& row : rows) {
    batch.tokens.insert(batch.tokens.end(), row.text.begin(), row.text.end() - 1);
    batch.targets.insert(batch.targets.end(), row.text.begin() + 1, row.text.end());
  }
  return batch;
}

}  // namespace

// A Feistel network on the smallest even number of bits that holds n, walked until it lands below
// n.
int64_t permuted(int64_t i, int64_t n, uint64_t seed, uint64_t stream) {
  int half = 1;
  while ((int64_t{1} << (2 * half)) < n) ++half;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  auto x = static_cast<uint64_t>(i);
  do {
    for (uint32_t round = 0; round < 6; ++round) {
      const uint64_t left = x >> half, right = x & mask;
      const PhiloxBlock draw =
          philox({static_cast<uint32_t>(right), static_cast<uint32_t>(right >> 32) ^ (round << 24),
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                 seed);
      x = (right << half) | (left ^ (draw[0] & mask));
    }
  } while (x >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(x);
}

int64_t TokenData::training_start(int64_t sample, uint64_t seed) const {
  const int64_t windows = training_windows();
  const int64_t epoch = sample / windows;
  const int64_t freedom = static_cast<int64_t>(training_bytes_) - 1 - windows * sequence_;
  const auto offset = static_cast<int64_t>(uniform_at(seed, kOffset, static_cast<uint64_t>(epoch)) *
                                           static_cast<double>(freedom + 1));
  const uint64_t order = kOrder ^ (static_cast<uint64_t>(epoch) * 0x9E3779B97F4A7C15ULL);
  return offset + permuted(sample % windows, windows, seed, order) * sequence_;
}

Batch TokenData::training_batch(int64_t step, const BatchOptions& options) const {
  std::vector<Row> rows;
  for (int64_t i = 0; i < options.batch; ++i) {
    const int64_t sample = step * options.batch + i;
    const auto start = static_cast<size_t>(training_start(sample, options.seed));
    rows.push_back({training().subspan(start, static_cast<size_t>(sequence_) + 1), sample});
  }
  return make_batch(rows, options, kTrainingMask);
}

Batch TokenData::validation_batch(int64_t index, const BatchOptions& options) const {
  std::vector<Row> rows;
  for (int64_t i = 0; i < options.batch; ++i) {
    const int64_t window = (index * options.batch + i) % validation_windows();
    const auto start = static_cast<size_t>(window * sequence_);
    rows.push_back({validation().subspan(start, static_cast<size_t>(sequence_) + 1), window});
  }
  return make_batch(rows, options, kValidationMask);
}

}  // namespace cleave
