#include "data/batch.h"

#include <algorithm>

#include "graph/philox.h"

namespace cleave {
namespace {

void add_masked(Batch& batch, const BatchRow& row, const BatchOptions& options, int64_t data_vocab,
                uint64_t stream) {
  const int64_t ordinary = data_vocab == 0 ? options.vocab : std::min(options.vocab, data_vocab);
  const int64_t mask =
      options.mask_token >= 0 ? options.mask_token : std::min(ordinary, options.vocab - 1);
  const auto choose = [&](size_t at, const PhiloxBlock& draw) {
    batch.targets[at] = batch.tokens[at];
    const double fate = unit_interval(draw[1]);
    if (fate < 0.8) {
      batch.tokens[at] = static_cast<int32_t>(mask);
    } else if (fate < 0.9) {
      batch.tokens[at] =
          static_cast<int32_t>(unit_interval(draw[2]) * static_cast<double>(ordinary));
    }
  };
  const size_t sequence = row.text.size() - 1;
  size_t chosen = 0, least = 0;
  uint32_t smallest = UINT32_MAX;
  PhiloxBlock least_draw{};
  for (size_t i = 0; i < sequence; ++i) {
    const size_t at = batch.tokens.size();
    batch.tokens.push_back(row.text[i]);
    batch.targets.push_back(kNoTarget);
    const uint64_t position = static_cast<uint64_t>(row.sample) * sequence + i;
    const PhiloxBlock draw = philox_block(options.seed, stream, position);
    if (i == 0 || draw[0] < smallest) smallest = draw[0], least = at, least_draw = draw;
    if (unit_interval(draw[0]) >= 0.15) continue;
    choose(at, draw);
    ++chosen;
  }
  // The loss is a mean over what was chosen: without a target there would be none. Each row has
  // one, and not each batch, so that a row is the same in a batch of any size.
  if (chosen == 0) choose(least, least_draw);
}

}  // namespace

void add_row(Batch& batch, const BatchRow& row, const BatchOptions& options, int64_t data_vocab,
             uint64_t mask_stream) {
  if (options.targets == Targets::kMaskedTokens) {
    add_masked(batch, row, options, data_vocab, mask_stream);
    return;
  }
  batch.tokens.insert(batch.tokens.end(), row.text.begin(), row.text.end() - 1);
  batch.targets.insert(batch.targets.end(), row.text.begin() + 1, row.text.end());
}

}  // namespace cleave
