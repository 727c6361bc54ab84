#include "data/bpe.h"

#include <algorithm>
#include <bit>
#include <queue>

#include "graph/error.h"

namespace cleave {
namespace {

constexpr size_t kShort = 32;  // bytes up to which looking at all pairs is quicker than a heap
constexpr uint32_t kNoRank = UINT32_MAX;

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

size_t slot_of(uint64_t pair, int shift) { return (pair * 0x9E3779B97F4A7C15ULL) >> shift; }

}  // namespace

BpeMerger::BpeMerger(const BpeDefinition& definition) : byte_tokens_(definition.byte_tokens) {
  const size_t size = std::bit_ceil(std::max<size_t>(definition.merges.size() * 2, 2));
  shift_ = 64 - std::countr_zero(size);
  table_.resize(size);
  CLEAVE_ASSERT(definition.merges.size() < kNoRank, "{} merges", definition.merges.size());
  for (uint32_t rank = 0; rank < definition.merges.size(); ++rank) {
    const BpeMerge& m = definition.merges[rank];
    const uint64_t pair = pair_of(m.left, m.right);
    size_t slot = slot_of(pair, shift_);
    while (table_[slot].result >= 0 && table_[slot].pair != pair) slot = (slot + 1) % size;
    table_[slot] = {pair, rank, m.result};
  }
}

const BpeMerger::Entry* BpeMerger::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  size_t slot = slot_of(pair, shift_);
  while (table_[slot].result >= 0) {
    if (table_[slot].pair == pair) return &table_[slot];
    slot = (slot + 1) & (table_.size() - 1);
  }
  return nullptr;
}

void BpeMerger::encode(std::string_view piece, std::vector<int32_t>& tokens) const {
  if (piece.size() <= kShort) {
    encode_short(piece, tokens);
  } else {
    encode_long(piece, tokens);
  }
}

// merge[i] is that of token i and the next one.
void BpeMerger::encode_short(std::string_view piece, std::vector<int32_t>& tokens) const {
  std::array<int32_t, kShort> token;
  std::array<const Entry*, kShort> merge;
  size_t n = piece.size();
  for (size_t i = 0; i < n; ++i) token[i] = byte_tokens_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i + 1 < n; ++i) merge[i] = find(token[i], token[i + 1]);
  while (n > 1) {
    uint32_t best = kNoRank;
    size_t at = 0;
    for (size_t i = 0; i + 1 < n; ++i) {
      if (merge[i] != nullptr && merge[i]->rank < best) best = merge[i]->rank, at = i;
    }
    if (best == kNoRank) break;
    token[at] = merge[at]->result;
    for (size_t i = at + 1; i + 1 < n; ++i) token[i] = token[i + 1], merge[i - 1] = merge[i];
    --n;
    // The pairs on both sides of the new token are new.
    if (at > 0) merge[at - 1] = find(token[at - 1], token[at]);
    if (at + 1 < n) merge[at] = find(token[at], token[at + 1]);
  }
  tokens.insert(tokens.end(), token.begin(), token.begin() + static_cast<int64_t>(n));
}

// A list of tokens and a heap of merges. A merge whose tokens have changed since is passed over.
void BpeMerger::encode_long(std::string_view piece, std::vector<int32_t>& tokens) const {
  struct Link {
    int32_t token;
    int64_t before, next;  // -1: none
  };
  struct Candidate {
    uint32_t rank;
    int64_t at;
    uint64_t pair;
    int32_t result;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  const auto n = static_cast<int64_t>(piece.size());
  std::vector<Link> links;
  links.reserve(piece.size());
  for (int64_t i = 0; i < n; ++i) {
    links.push_back({byte_tokens_[static_cast<uint8_t>(piece[static_cast<size_t>(i)])], i - 1,
                     i + 1 < n ? i + 1 : -1});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto link = [&](int64_t i) -> Link& { return links[static_cast<size_t>(i)]; };
  const auto consider = [&](int64_t i) {
    if (i < 0 || link(i).next < 0) return;
    const int32_t left = link(i).token, right = link(link(i).next).token;
    const Entry* merge = find(left, right);
    if (merge != nullptr) candidates.push({merge->rank, i, merge->pair, merge->result});
  };
  for (int64_t i = 0; i + 1 < n; ++i) consider(i);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Link& left = link(best.at);
    if (left.token < 0 || left.next < 0) continue;
    Link& right = link(left.next);
    if (pair_of(left.token, right.token) != best.pair) continue;
    left.token = best.result;
    left.next = right.next;
    right.token = -1;  // gone
    if (left.next >= 0) link(left.next).before = best.at;
    consider(left.before);
    consider(best.at);
  }
  for (int64_t i = 0; i >= 0; i = link(i).next) tokens.push_back(link(i).token);
}

}  // namespace cleave
