#include "executor/score_head.h"

#include <algorithm>
#include <map>
#include <utility>

#include "executor/fuser.h"
#include "kernels/ops.h"

namespace cleave {
namespace {

// How many chunks of the rows are within the limit: the fewest that divide them, and not more than
// twice as many as there must be; 1: there are none.
int64_t chunks_of(int64_t rows, int64_t bytes, int64_t limit) {
  const int64_t least = (bytes + limit - 1) / limit;
  for (int64_t chunks = least; chunks <= std::min(2 * least, rows); ++chunks) {
    if (rows % chunks == 0) return chunks;
  }
  return 1;
}

bool lacks_rows(const OperandDims& dims, std::span<const DimFactors> rows) {
  return std::all_of(dims.begin(), dims.end(), [&](const DimFactors& d) {
    return std::none_of(rows.begin(), rows.end(), [&](const DimFactors& r) {
      return std::find(d.begin(), d.end(), r[0]) != d.end();
    });
  });
}

// A reshape that leaves the classes, the last dimension, as they are: the rows are named otherwise.
bool renames_rows(const Instr& instr) {
  if (instr.op != &ops::reshape || !is_plain(instr)) return false;
  const OperandDims &in = instr.signature->inputs()[0], &out = instr.signature->outputs()[0];
  return in.size() > 1 && out.size() > 1 && in.back() == out.back() && in.back().size() == 1;
}

}  // namespace

std::span<const DimFactors> row_factors(const OperandDims& dims) {
  const bool single = std::all_of(dims.begin(), dims.end(), [](auto& d) { return d.size() == 1; });
  if (!single || dims.size() < 2) return {};
  return {dims.data(), dims.size() - 1};
}

bool has_rows(const OperandDims& dims, std::span<const DimFactors> rows) {
  if (dims.size() < rows.size() || !std::equal(rows.begin(), rows.end(), dims.begin()))
    return false;
  return lacks_rows({dims.begin() + std::ssize(rows), dims.end()}, rows);
}

std::optional<size_t> HeadFinder::maker(TensorId t) const {
  const int64_t m = makers_[static_cast<size_t>(t)];
  return m < 0 ? std::nullopt : std::optional(static_cast<size_t>(m));
}

int64_t HeadFinder::bytes(TensorId t) const {
  const ProgramTensor& tensor = p_.tensor(t);
  return numel(tensor.geometry.shape) * size_of(tensor.dtype);
}

std::optional<ScoreHead> HeadFinder::find(int64_t limit) {
  bool looked = false;
  for (size_t i = 0; i < p_.instrs.size(); ++i) {
    const Instr& x = instr(i);
    if (x.op != &ops::cross_entropy_backward || bytes(x.in[0]) <= limit) continue;
    if (!std::exchange(looked, true)) look();
    if (auto head = head_at(i, limit)) return head;
  }
  return std::nullopt;
}

void HeadFinder::look() {
  makers_.assign(p_.tensors.size(), -1);
  readers_.assign(p_.tensors.size(), {});
  first_.resize(p_.tensors.size());
  for (size_t t = 0; t < first_.size(); ++t) first_[t] = static_cast<TensorId>(t);
  ends_.clear();
  std::map<std::pair<const void*, std::vector<TensorId>>, std::vector<size_t>> known;
  for (size_t i = 0; i < p_.instrs.size(); ++i) {
    const Instr& x = instr(i);
    for (TensorId t : x.in) readers_[static_cast<size_t>(t)].push_back(i);
    for (TensorId t : x.out) makers_[static_cast<size_t>(t)] = static_cast<int64_t>(i);
    if (x.kind != InstrKind::kCompute || x.part == Part::kUpdate) continue;
    std::vector<TensorId> in;
    for (TensorId t : x.in) in.push_back(first(t));
    std::vector<size_t>& like = known[{x.op, std::move(in)}];
    const auto same = std::find_if(like.begin(), like.end(), [&](size_t k) {
      return instr(k).signature == x.signature && instr(k).attrs == x.attrs &&
             instr(k).letter_atoms == x.letter_atoms && instr(k).out.size() == x.out.size();
    });
    if (same == like.end()) {
      like.push_back(i);
      continue;
    }
    for (size_t o = 0; o < x.out.size(); ++o)
      first_[static_cast<size_t>(x.out[o])] = instr(*same).out[o];
  }
  for (const ProgramOutput& o : p_.outputs) ends_.insert(o.tensor);
  for (const ProgramSource& s : p_.sources) {
    if (s.final >= 0) ends_.insert(s.final);
  }
  for (const KeptTensor& k : p_.kept) ends_.insert({k.tensor, k.final});
}

// What the tensor is the same as, with other names of the rows.
TensorId HeadFinder::seen_through(TensorId t) const {
  t = first(t);
  for (auto m = maker(t); m && renames_rows(instr(*m)); m = maker(t)) t = first(instr(*m).in[0]);
  return t;
}

std::optional<ScoreHead> HeadFinder::head_at(size_t i, int64_t limit) const {
  const Instr& b = instr(i);
  const TensorId scores = seen_through(b.in[0]), lses = first(b.in[2]);
  const auto product = maker(scores), loss = maker(lses);
  if (!is_plain(b) || !product || !loss) return {};
  const Instr &p = instr(*product), &l = instr(*loss);
  if (!is_plain(p) || p.op != &ops::matmul || !p.attrs.empty()) return {};
  const OperandDims &x = p.signature->inputs()[0], &out = p.signature->outputs()[0];
  const auto rows = row_factors(out);
  if (rows.empty() || row_factors(x).size() != rows.size() || !has_rows(x, rows) ||
      !lacks_rows(p.signature->inputs()[1], rows)) {
    return {};
  }
  if (!is_plain(l) || l.op != &ops::cross_entropy || l.out[1] != lses ||
      seen_through(l.in[0]) != scores || first(l.in[1]) != first(b.in[1])) {
    return {};
  }
  for (const Instr* of : {&l, &b}) {
    const auto own = row_factors(of->signature->inputs()[0]);
    if (own.empty() || !has_rows(of->signature->inputs()[1], own)) return {};
  }
  ScoreHead head;
  head.product = *product;
  head.loss = *loss;
  head.backward = i;
  head.instrs.insert(i);
  if (!add_forward(head, scores) || !add_products(head)) return {};
  if (!is_there(head, p.in[1])) return {};
  // Targets may be reshaped, and the losses' gradients made, after the product: before it then.
  for (const TensorId t : {b.in[1], b.in[3]}) {
    const auto made_first = [&](TensorId x) { return maker(first(x)); };
    if (!can_move_before(p_, head.product, head.instrs, made_first, t, head.before)) return {};
  }
  const Shape& shape = p_.tensor(scores).geometry.shape;
  head.rows = numel(shape) / shape.back();
  head.chunks = chunks_of(head.rows, bytes(scores), limit);
  return head.chunks > 1 ? std::optional(head) : std::nullopt;
}

// All that make the scores, and their losses: nobody else reads scores, but for the backward.
bool HeadFinder::add_forward(ScoreHead& head, TensorId scores) const {
  for (size_t t = 0; t < first_.size(); ++t) {
    const auto id = static_cast<TensorId>(t);
    if (!maker(id) || seen_through(id) != scores) continue;
    if (ends(id)) return false;
    head.instrs.insert(*maker(id));
    for (const size_t r : readers(id)) {
      const Instr& x = instr(r);
      if (r == head.backward || renames_rows(x)) continue;
      if (x.op != &ops::cross_entropy || x.in[0] != id ||
          first(x.out[0]) != instr(head.loss).out[0]) {
        return false;
      }
      head.instrs.insert(r);
    }
  }
  return true;
}

// The readers of dscores: products along the classes, or across all rows.
bool HeadFinder::add_products(ScoreHead& head) const {
  std::vector<TensorId> left = {instr(head.backward).out[0]};
  while (!left.empty()) {
    const TensorId dscores = left.back();
    left.pop_back();
    if (ends(dscores)) return false;
    head.dscores.insert(dscores);
    for (const size_t r : readers(dscores)) {
      const Instr& x = instr(r);
      if (renames_rows(x)) {
        head.instrs.insert(r);
        left.push_back(x.out[0]);
        continue;
      }
      if (!is_plain(x) || x.op != &ops::matmul || x.in[0] == x.in[1]) return false;
      const size_t own = x.in[0] == dscores ? 0 : 1;
      const OperandDims &mine = x.signature->inputs()[own], &other = x.signature->inputs()[1 - own],
                        &out = x.signature->outputs()[0];
      const auto rows = row_factors(mine);
      const bool bare = x.attrs.items().size() == (x.attrs.has("dtype") ? 1 : 0);
      if (!bare || rows.empty() || !is_there(head, x.in[1 - own])) return false;
      if (row_factors(out).size() == rows.size() && has_rows(out, rows) &&
          lacks_rows(other, rows) && out.back() != mine.back()) {
        head.along.push_back(r);
      } else if (lacks_rows(out, rows) && row_factors(other).size() == rows.size() &&
                 has_rows(other, rows)) {
        head.across.push_back(r);
      } else {
        return false;
      }
    }
  }
  return true;
}

bool HeadFinder::is_there(const ScoreHead& head, TensorId t) const {
  const auto m = maker(first(t));
  return !m || *m < head.product;
}

}  // namespace cleave
