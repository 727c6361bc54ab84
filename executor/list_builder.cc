#include "executor/list_builder.h"

#include <algorithm>

#include "executor/typing.h"
#include "graph/error.h"

namespace cleave {
namespace {

size_t at(int32_t index) { return static_cast<size_t>(index); }

}  // namespace

ListBuilder::ListBuilder(const ListSources& from, std::map<NodeId, SlotId>& messages,
                         StepTasks& step, StepTasks::Stage& stage)
    : p_(from.program),
      cluster_(from.cluster),
      options_(from.options),
      flow_(from.flow),
      costs_(from.costs),
      messages_(messages),
      step_(step),
      stage_(stage),
      where_(p_.tensors.size()),
      finished_(p_.instrs.size(), false) {
  for (size_t i = 0; i < p_.instrs.size(); ++i) {
    const auto n = static_cast<int32_t>(i);
    if (flow_.part[i] < 0 || !is_bundle(n)) continue;
    Buckets& b = buckets_[n];
    b.left = p_.instrs[i].out.size();
    b.in.assign(b.left, false);
  }
}

bool ListBuilder::is_placed(int32_t i) const {
  if (const auto b = buckets_.find(i); b != buckets_.end()) return b->second.left == 0;
  return task_of_[at(i)] >= 0;
}

double ListBuilder::local_bytes(TensorId t) const {
  const ProgramTensor& tensor = p_.tensor(t);
  return static_cast<double>(numel(tensor.geometry.shape) * size_of(tensor.dtype));
}

// --- Lists ---------------------------------------------------------------------------------------

int32_t ListBuilder::list_of(const PartRun& run) {
  const int32_t chunk = once_a_step(run.part) ? p_.stage_of(run.chunk) : run.chunk;
  const int32_t part = flow_.part_of(run.part, chunk);
  if (part < 0) return -1;
  UnitLists& l = lists_.try_emplace(part).first->second;
  if (!options_.overlap) {
    if (l.first < 0) l.first = in_program_order(part);
    return l.first;
  }
  if (run.part == Part::kUpdate) return update(part);
  if (run.part == Part::kBegin) return pass_list(part, false, false, true);
  if (run.micro_batch + 1 == step_.micro_batches)
    return pass_list(part, run.micro_batch > 0, false, true);
  if (run.micro_batch == 0) return l.first = pass_list(part, false, true, false);
  if (l.middle < 0) l.middle = pass_list(part, true, true, false);
  return l.middle;
}

int32_t ListBuilder::in_program_order(int32_t part) {
  begin_list(part, true);
  for (const int32_t i : flow_.parts[at(part)].instrs) place(i);
  join();
  return list_;
}

void ListBuilder::begin_list(int32_t part, bool is_last) {
  stage_.lists.emplace_back();
  is_last_.push_back(is_last);
  sets_.emplace_back();
  list_ = static_cast<int32_t>(stage_.lists.size() - 1);
  part_ = part;
  last_compute_ = -1;
  task_of_.assign(p_.instrs.size(), -1);
  delayed_.clear();
  delayed_bytes_ = 0;
  emit({.stream = kComputeStream}, no_needs());  // when all that was computed before is there
}

int32_t ListBuilder::pass_list(int32_t part, bool carry_in, bool carry_out, bool is_last) {
  begin_list(part, is_last);
  const ProgramPart& of = flow_.parts[at(part)];
  if (carry_in) {
    for (const int32_t i : lists_[part].carried) {
      delayed_.push_back({i, true, 0});
      for (const TensorId t : instr(i).in) {
        const int32_t maker = flow_.producer[at(root(t))];
        if (maker >= 0 && carry_slots_.contains(maker)) delayed_.back().bytes += local_bytes(t);
      }
      delayed_bytes_ += delayed_.back().bytes;
    }
  }
  const std::vector<Ahead> ahead = find_ahead(of);
  size_t next = 0;
  for (; next < ahead.size() && ahead[next].before < 0; ++next)
    place_ahead(ahead[next].instr, false);
  for (const int32_t i : of.instrs) {
    for (; next < ahead.size() && ahead[next].before <= i; ++next)
      place_ahead(ahead[next].instr, true);
    issue(i);
  }
  end_pass(carry_out);
  return list_;
}

void ListBuilder::issue(int32_t i) {
  if (is_placed(i) || finished_[at(i)]) return;
  if (is_bundle(i) && is_collective(instr(i).kind)) {
    Buckets& b = buckets_[i];
    for (size_t pair = 0; pair < b.in.size(); ++pair)
      if (!b.in[pair]) add_pair(i, pair);
  } else if (flow_.lazy[at(i)] && !is_collective(instr(i).kind)) {
    delay(i);
  } else {
    place(i);
  }
}

void ListBuilder::end_pass(bool carry_out) {
  while (!delayed_.empty() && (!carry_out || delayed_.front().previous)) issue_oldest();
  if (carry_out) {
    std::vector<int32_t> left;
    for (const Delayed& d : delayed_) {
      left.push_back(d.instr);
      for (const TensorId t : instr(d.instr).in) {
        const int32_t maker = flow_.producer[at(root(t))];
        if (maker < 0 || part(maker) != part_ || !is_collective(instr(maker).kind)) continue;
        const auto [slot, is_new] = carry_slots_.try_emplace(maker, -1);
        if (is_new) slot->second = step_.add_slot(true);
        sets_[at(list_)].emplace_back(task_of_[at(maker)], slot->second);
      }
    }
    std::vector<int32_t>& carried = lists_[part_].carried;
    CLEAVE_ASSERT(lists_[part_].first < 0 || carried == left,
                  "a unit leaves {} instructions to the next, and then {}", carried.size(),
                  left.size());
    carried = std::move(left);
    delayed_.clear();
  }
  close_all();
  join();
}

// What other streams make for another unit is there when its own unit ends.
void ListBuilder::join() {
  Needs needs = no_needs();
  for (const int32_t i : flow_.parts[at(part_)].instrs) {
    for (const TensorId t : instr(i).out) {
      for (const int32_t r : flow_.readers[at(t)])
        if (part(r) != part_ && !in_update(r)) require(needs, t, i, false);
    }
  }
  needs.on_stream[kComputeStream] = -1;
  if (std::any_of(needs.on_stream.begin(), needs.on_stream.end(), [](int32_t t) { return t >= 0; }))
    emit({.stream = kComputeStream}, needs);
}

int32_t ListBuilder::update(int32_t part) {
  begin_list(part, true);
  for (const int32_t i : flow_.parts[at(part)].instrs) issue(i);
  close_all();
  return list_;
}

void ListBuilder::finish() {
  for (size_t l = 0; l < stage_.lists.size(); ++l) {
    std::vector<std::pair<int32_t, SlotId>>& more = sets_[l];
    std::sort(more.begin(), more.end());
    more.erase(std::unique(more.begin(), more.end()), more.end());
    TaskList& list = stage_.lists[l];
    std::vector<SlotId> sets;
    size_t next = 0;
    for (size_t t = 0; t < list.tasks.size(); ++t) {
      for (; next < more.size() && at(more[next].first) == t; ++next)
        sets.push_back(more[next].second);
      list.tasks[t].sets_end = static_cast<int32_t>(sets.size());
    }
    list.sets = std::move(sets);
  }
}

// --- Ahead of use --------------------------------------------------------------------------------

// In the order of issue: the result of each is there, or on its way, while those before it wait for
// their use.
std::vector<ListBuilder::Ahead> ListBuilder::find_ahead(const ProgramPart& of) const {
  struct Gather {
    int32_t instr, use;
    double bytes;
  };
  std::vector<Gather> gathers;
  std::map<int32_t, int32_t> use;  // by instruction that is ahead: its first that is not
  for (size_t k = of.instrs.size(); k-- > 0;) {
    const int32_t i = of.instrs[k];
    if (!flow_.ahead[at(i)]) continue;
    int32_t first = static_cast<int32_t>(p_.instrs.size());
    double bytes = 0;
    for (const TensorId t : instr(i).out) {
      bytes += local_bytes(t);
      for (const int32_t r : flow_.readers[at(t)]) {
        if (part(r) == part_) first = std::min(first, flow_.ahead[at(r)] ? use[r] : r);
      }
    }
    use[i] = first;
    if (is_collective(instr(i).kind)) gathers.push_back({i, first, bytes});
  }
  std::sort(gathers.begin(), gathers.end(), [](const Gather& a, const Gather& b) {
    return std::pair(a.use, a.instr) < std::pair(b.use, b.instr);
  });
  std::vector<Ahead> result;
  double waiting = 0;
  size_t oldest = 0;  // of those that wait for their use
  for (size_t g = 0; g < gathers.size(); ++g) {
    waiting += gathers[g].bytes;
    while (oldest < g && waiting > options_.ahead_bytes) waiting -= gathers[oldest++].bytes;
    result.push_back({gathers[g].instr, oldest == 0 ? -1 : gathers[oldest - 1].use});
  }
  return result;
}

void ListBuilder::place_ahead(int32_t i, bool anchored) {
  if (is_placed(i)) return;
  for (const TensorId t : instr(i).in) {
    const int32_t maker = flow_.producer[at(root(t))];
    if (maker >= 0 && part(maker) == part_) place_ahead(maker, anchored);
  }
  place(i, false, anchored);
}

// --- Tasks ---------------------------------------------------------------------------------------

ListBuilder::Needs ListBuilder::no_needs() const {
  return {std::vector<int32_t>(at(stage_.streams), -1), {}};
}

// The reader starts after the tensor is there.
void ListBuilder::require(Needs& needs, TensorId t, int32_t reader, bool previous) {
  const TensorId r = root(t);
  const int32_t maker = flow_.producer[at(r)];
  if (previous) {
    if (const auto slot = carry_slots_.find(maker); slot != carry_slots_.end())
      needs.waits.push_back({slot->second, true});
    return;
  }
  if (maker < 0) return;
  const Place& place = where_[at(r)];
  const int32_t stream =
      place.list < 0 ? kComputeStream : list(place.list).tasks[at(place.task)].stream;
  if (place.list == list_) {
    int32_t& last = needs.on_stream[at(stream)];
    last = std::max(last, place.task);
    return;
  }
  needs.on_stream[kComputeStream] = std::max(needs.on_stream[kComputeStream], 0);
  if (stream != kComputeStream && in_update(reader)) {
    // Between the units of a pass, computation waits at the end of each.
    const SlotId slot = step_.add_slot(false);
    sets_[at(place.list)].emplace_back(place.task, slot);
    needs.waits.push_back({slot, false});
  }
}

// What it overwrites has been read.
void ListBuilder::require_memory(Needs& needs, int32_t i, TensorId out) {
  for (const int32_t other : flow_.touchers[at(p_.tensor(out).buffer)]) {
    if (other >= i || part(other) != part_) continue;
    if (buckets_.contains(other) && other != i) close(other);
    const int32_t task = task_of_[at(other)];
    if (task < 0) continue;
    int32_t& last = needs.on_stream[at(list(list_).tasks[at(task)].stream)];
    last = std::max(last, task);
  }
}

bool ListBuilder::is_there(TensorId t, int32_t reader) const {
  const int32_t maker = flow_.producer[at(root(t))];
  if (maker < 0) return true;
  if (!in_update(reader) && part(maker) != part_) return true;
  const Place& place = where_[at(root(t))];
  return place.list == list_ || (in_update(reader) && place.list >= 0 && is_last_[at(place.list)]);
}

int32_t ListBuilder::emit(Task task, const Needs& needs) {
  TaskList& to = list(list_);
  to.add(task);
  for (size_t s = 0; s < needs.on_stream.size(); ++s) {
    if (static_cast<int32_t>(s) != task.stream && needs.on_stream[s] >= 0)
      to.need(needs.on_stream[s]);
  }
  for (const SlotWait& w : needs.waits) to.wait(w);
  const auto index = static_cast<int32_t>(to.tasks.size() - 1);
  if (task.stream == kComputeStream) last_compute_ = index;
  return index;
}

void ListBuilder::place(int32_t i, bool previous, bool anchored) {
  const Instr& in = instr(i);
  Needs needs = no_needs();
  for (const TensorId t : in.in) require(needs, t, i, previous);
  if (flow_.overwrites[at(i)] && !previous)
    for (const TensorId t : in.out) require_memory(needs, i, t);
  Task task{.stream = stream_of(p_, cluster_, in),
            .seconds = costs_.seconds(at(i)),
            .instr = i,
            .previous = previous};
  const bool with_host = copies_with_host(p_, in);
  if (!options_.overlap && (is_collective(in.kind) || with_host)) task.stream = kComputeStream;
  if (anchored || with_host)  // the host's copies are not ahead of the program
    needs.on_stream[kComputeStream] = std::max(needs.on_stream[kComputeStream], last_compute_);
  const bool sends = in.kind == InstrKind::kSend;
  if (sends || in.kind == InstrKind::kReceive) {
    const auto [slot, is_new] = messages_.try_emplace(in.node, -1);
    if (is_new) slot->second = step_.add_slot(!once_a_step(in.part));
    if (sends)
      sets_[at(list_)].emplace_back(static_cast<int32_t>(list(list_).tasks.size()), slot->second);
    if (!sends) needs.waits.push_back({slot->second, false});
  }
  const int32_t index = emit(task, needs);
  if (previous) return;
  task_of_[at(i)] = index;
  if (in_update(i)) finished_[at(i)] = true;
  for (const TensorId t : in.out) where_[at(t)] = {list_, index};
  for (const TensorId t : in.out) made(t);
}

// Collectives and sends that can now be issued are.
void ListBuilder::made(TensorId t) {
  if (!options_.overlap) return;
  for (const int32_t r : flow_.readers[at(t)]) {
    if (is_placed(r) || finished_[at(r)]) continue;
    const bool here = part(r) == part_ && !flow_.ahead[at(r)];
    const bool soon = flow_.early[at(r)] && is_last_[at(list_)];
    if (here || soon) try_collective(r, t);
  }
}

void ListBuilder::try_collective(int32_t i, TensorId t) {
  const Instr& in = instr(i);
  if (in.kind == InstrKind::kSend) {
    this->place(i);
    return;
  }
  if (!is_collective(in.kind)) {
    // A local step between two bundles, when it need not wait.
    const bool early = flow_.early[at(i)] && part_ != part(i) && !flow_.overwrites[at(i)];
    const Place& place = where_[at(root(in.in[0]))];
    if (early && list(place.list).tasks[at(place.task)].stream == kComputeStream) this->place(i);
    return;
  }
  if (is_bundle(i)) {
    Buckets& b = buckets_[i];
    for (size_t pair = 0; pair < in.in.size(); ++pair) {
      if (b.in[pair] || root(in.in[pair]) != t) continue;
      const std::vector<int32_t>& others = flow_.touchers[at(p_.tensor(in.out[pair]).buffer)];
      const bool free = std::all_of(others.begin(), others.end(), [&](int32_t o) {
        return o >= i || part(o) != part(i) || is_placed(o) || finished_[at(o)];
      });
      if (!flow_.overwrites[at(i)] || free) add_pair(i, pair);
    }
    return;
  }
  if (flow_.overwrites[at(i)]) return;
  if (std::all_of(in.in.begin(), in.in.end(), [&](TensorId x) { return is_there(x, i); })) place(i);
}

// --- Buckets -------------------------------------------------------------------------------------

void ListBuilder::add_pair(int32_t i, size_t pair) {
  Buckets& b = buckets_[i];
  b.in[pair] = true;
  b.open.push_back(pair);
  b.size += std::max(local_bytes(instr(i).in[pair]), local_bytes(instr(i).out[pair]));
  b.sent += costs_.bytes(at(i), pair);
  --b.left;
  if (b.size >= options_.bucket_bytes || b.left == 0) close(i);
}

void ListBuilder::close(int32_t i) {
  Buckets& b = buckets_[i];
  if (b.open.empty()) return;
  const std::vector<size_t> pairs = std::move(b.open);
  b.open.clear();
  Needs needs = no_needs();
  for (const size_t pair : pairs) {
    require(needs, instr(i).in[pair], i, false);
    if (flow_.overwrites[at(i)]) require_memory(needs, i, instr(i).out[pair]);
  }
  const bool whole = b.left == 0 && b.closed == 0;
  if (!whole) stage_.buckets[{i, b.closed}] = pairs;
  const int32_t index = emit({.stream = stream_of(p_, cluster_, instr(i)),
                              .seconds = costs_.collective_seconds(at(i), b.sent),
                              .instr = i,
                              .bucket = whole ? -1 : b.closed},
                             needs);
  ++b.closed;
  b.size = b.sent = 0;
  task_of_[at(i)] = index;
  if (b.left == 0) finished_[at(i)] = true;
  for (const size_t pair : pairs) where_[at(instr(i).out[pair])] = {list_, index};
  for (const size_t pair : pairs) made(instr(i).out[pair]);
}

void ListBuilder::close_all() {
  for (auto& [i, b] : buckets_) close(i);
}

// --- Put off -------------------------------------------------------------------------------------

void ListBuilder::delay(int32_t i) {
  Delayed d{i, false, 0};
  for (const TensorId t : instr(i).in) {
    const int32_t maker = flow_.producer[at(root(t))];
    if (maker >= 0 && part(maker) == part_ && is_collective(instr(maker).kind))
      d.bytes += local_bytes(t);
  }
  delayed_bytes_ += d.bytes;
  delayed_.push_back(d);
  while (delayed_bytes_ > options_.ahead_bytes) issue_oldest();
}

// Issues the oldest that was put off.
void ListBuilder::issue_oldest() {
  const Delayed d = delayed_.front();
  delayed_.pop_front();
  delayed_bytes_ -= d.bytes;
  place(d.instr, d.previous);
}

}  // namespace cleave
