#include "planner/capacity_bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cleave {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr size_t kMostHeavy = 3;                       // pieces besides copies that are placed
constexpr double kHeavy = 0.02;                        // of a copy's seconds: what is worth placing
constexpr int kPrices = 40;                            // of a byte that are tried
constexpr double kLeastPrice = 1e-3, kMostPrice = 30;  // of those; steps a limit
constexpr int kHalvings = 12;
constexpr double kSlack = 1e-9;  // of a piece, for rounding

// How often a chain counts a piece's seconds, by what they are spent on.
struct Counts {
  double forward = 0, backward = 0, awaited = 0, update = 0;

  double seconds(const PieceLoad& l) const {
    return forward * l.seconds[0] + backward * l.seconds[1] +
           awaited * (l.seconds[1] - l.deferrable) + update * l.seconds[2];
  }
  Counts above(const Counts& base) const {
    return {forward - base.forward, backward - base.backward, awaited - base.awaited,
            update - base.update};
  }
};

// What keeps one stage from taking more copies: `copies` for certain, which leave T - fixed for
// more at `each`, or, of bytes alone, -fixed whatever T; a heavy piece costs `heavy`.
struct Room {
  bool bytes_alone = false;
  double fixed = 0, each = 0;
  int32_t copies = 0;
  std::vector<double> heavy;
};

class Capacity {
 public:
  Capacity(const Arrangement& a, const std::vector<Piece>& pieces,
           const std::vector<PieceOption>& options, const std::vector<double>& limits,
           Schedules& schedules)
      : stages_(a.stages),
        chunks_(a.stages * a.chunks),
        options_(options),
        limits_(limits),
        flights_(schedules.of(a).in_flight) {
    find_copies(pieces);
    if (copies_ == 0) return;
    const PieceLoad most = options[0].loads[first_];
    const double worth = kHeavy * (most.seconds[0] + most.seconds[1]);
    std::vector<std::pair<double, size_t>> others;
    for (size_t p = 0; p < pieces.size(); ++p) {
      if (p >= first_ && p < first_ + copies_) continue;
      others_.push_back(p);
      const double seconds =
          least(p, [](const PieceLoad& l) { return l.seconds[0] + l.seconds[1]; });
      if (seconds > worth) others.emplace_back(-seconds, p);
    }
    std::sort(others.begin(), others.end());
    others.resize(std::min(others.size(), kMostHeavy));
    for (const auto& [seconds, p] : others) heavy_.push_back(p);
    rooms_.resize(static_cast<size_t>(stages_));
  }

  bool knows() const { return copies_ > 0; }

  void add_bytes() {
    for (int32_t s = 0; s < stages_; ++s) {
      if (std::isinf(limits_[size_t(s)])) continue;
      add_room(s, Counts(), 0, {}, 1);
      rooms_[size_t(s)].back().bytes_alone = true;
    }
  }

  // `base_price`: seconds a byte.
  void add_path(const CriticalPath& path, double sent, double base_price) {
    std::vector<Counts> counts;
    Counts base{kInfinity, kInfinity, kInfinity, kInfinity};
    for (int32_t c = 0; c < chunks_; ++c) {
      const auto i = static_cast<size_t>(c);
      const Counts n{path.forward[i], path.backward[i], path.awaited[i],
                     path.update[size_t(c % stages_)]};
      base = {std::min(base.forward, n.forward), std::min(base.backward, n.backward),
              std::min(base.awaited, n.awaited), std::min(base.update, n.update)};
      counts.push_back(n);
    }
    double fixed = path.sends * sent;
    for (size_t p : others_) fixed += least(p, [&](const PieceLoad& l) { return base.seconds(l); });
    fixed += static_cast<double>(copies_) *
             least_copy([&](const PieceLoad& l) { return base.seconds(l); });
    for (int32_t c = 0; c < chunks_; ++c) {
      if (c % stages_ == path.stage || !must_hold_copy(c)) continue;
      const Counts more = counts[size_t(c)].above(base);
      fixed += least_copy([&](const PieceLoad& l) { return more.seconds(l); });
    }
    add_room(path.stage, base, fixed, counts, 0);
    if (std::isinf(limits_[size_t(path.stage)])) return;
    for (int i = 0; i < kPrices; ++i) {
      const double price =
          base_price * kLeastPrice * std::pow(kMostPrice / kLeastPrice, i / double(kPrices - 1));
      add_room(path.stage, base, fixed, counts, price);
    }
  }

  // Whether all copies and heavy pieces find room in so many seconds.
  bool fits(double seconds) const {
    const size_t sets = size_t(1) << heavy_.size();
    std::vector<double> placed(sets, -1);  // by set of heavy pieces: most copies beside them
    placed[0] = 0;
    std::vector<double> capacity(sets);
    for (const auto& rooms : rooms_) {
      for (size_t set = 0; set < sets; ++set) capacity[set] = most_copies(rooms, set, seconds);
      std::vector<double> next(sets, -1);
      for (size_t before = 0; before < sets; ++before) {
        if (placed[before] < 0) continue;
        for (size_t set = 0; set < sets; ++set) {
          if ((before & set) != 0 || capacity[set] < 0) continue;
          double& most = next[before | set];
          most = std::max(most, placed[before] + capacity[set]);
        }
      }
      placed = std::move(next);
    }
    return placed[sets - 1] >= static_cast<double>(copies_);
  }

 private:
  // The copies of the largest repeat, and an option's load that none of them is below.
  void find_copies(const std::vector<Piece>& pieces) {
    for (size_t p = 0; p < pieces.size();) {
      size_t end = p + 1;
      while (end < pieces.size() && pieces[p].repeat >= 0 &&
             pieces[end].repeat == pieces[p].repeat) {
        ++end;
      }
      if (pieces[p].repeat >= 0 && end - p > copies_) first_ = p, copies_ = end - p;
      p = end;
    }
    after_ = pieces.size() - first_ - copies_;
    for (const PieceOption& o : options_) {
      if (copies_ == 0) break;
      PieceLoad l = o.loads[first_];
      double awaited = l.seconds[1] - l.deferrable;
      for (size_t p = first_; p < first_ + copies_; ++p) {
        const PieceLoad& x = o.loads[p];
        for (size_t i = 0; i < 3; ++i) l.seconds[i] = std::min(l.seconds[i], x.seconds[i]);
        awaited = std::min(awaited, x.seconds[1] - x.deferrable);
        l.state_bytes = std::min(l.state_bytes, x.state_bytes);
        l.kept_bytes = std::min(l.kept_bytes, x.kept_bytes);
      }
      l.deferrable = l.seconds[1] - awaited;
      copy_.push_back(l);
    }
  }

  // Chunks are not empty, and too many are before or after this one for it to be without a copy.
  bool must_hold_copy(int32_t c) const {
    return static_cast<size_t>(c) >= first_ && static_cast<size_t>(chunks_ - c) > after_;
  }

  template <class Cost>
  double least(size_t piece, const Cost& cost) const {
    double x = kInfinity;
    for (const PieceOption& o : options_) x = std::min(x, cost(o.loads[piece]));
    return x;
  }
  template <class Cost>
  double least_copy(const Cost& cost) const {
    double x = kInfinity;
    for (const PieceLoad& l : copy_) x = std::min(x, cost(l));
    return x;
  }

  // counts empty: bytes alone. What `base` counts is part of `fixed` for all pieces.
  void add_room(int32_t stage, const Counts& base, double fixed, const std::vector<Counts>& counts,
                double price) {
    Room room;
    room.fixed = fixed;
    if (price > 0) room.fixed -= price * limits_[size_t(stage)];
    room.each = kInfinity;
    room.heavy.assign(heavy_.size(), kInfinity);
    const auto in_base = [&](const PieceLoad& l) { return base.seconds(l); };
    for (int32_t c = stage; c < chunks_; c += stages_) {
      const Counts own = counts.empty() ? Counts() : counts[size_t(c)];
      const auto cost = [&](const PieceLoad& l) {
        return own.seconds(l) + price * (static_cast<double>(l.state_bytes) +
                                         flights_[size_t(c)] * static_cast<double>(l.kept_bytes));
      };
      const double each = least_copy(cost) - least_copy(in_base);
      if (must_hold_copy(c)) room.fixed += each, ++room.copies;
      room.each = std::min(room.each, each);
      for (size_t h = 0; h < heavy_.size(); ++h) {
        room.heavy[h] = std::min(room.heavy[h], least(heavy_[h], cost) - least(heavy_[h], in_base));
      }
    }
    rooms_[size_t(stage)].push_back(std::move(room));
  }

  double most_copies(const std::vector<Room>& rooms, size_t set, double seconds) const {
    double most = static_cast<double>(copies_);
    for (const Room& room : rooms) {
      double left = (room.bytes_alone ? 0 : seconds) - room.fixed;
      for (size_t h = 0; h < heavy_.size(); ++h) {
        if ((set >> h & 1) != 0) left -= room.heavy[h];
      }
      if (left < -kSlack * std::max(seconds, std::abs(room.fixed))) return -1;
      if (room.each > 0) {
        most = std::min(most, room.copies + std::floor(std::max(left, 0.0) / room.each + kSlack));
      }
    }
    return most;
  }

  const int32_t stages_, chunks_;
  const std::vector<PieceOption>& options_;
  const std::vector<double>& limits_;
  const std::vector<double>& flights_;         // by chunk
  size_t first_ = 0, copies_ = 0, after_ = 0;  // pieces before, in and after the repeat
  std::vector<PieceLoad> copy_;                // by option
  std::vector<size_t> others_, heavy_;         // pieces
  std::vector<std::vector<Room>> rooms_;       // by stage
};

}  // namespace

double capacity_bound(const Arrangement& arrangement, const std::vector<Piece>& pieces,
                      const std::vector<PieceOption>& options,
                      const std::vector<CriticalPath>& paths, const std::vector<double>& limits,
                      double sent, double enough, Schedules& schedules) {
  Capacity capacity(arrangement, pieces, options, limits, schedules);
  if (!capacity.knows()) return 0;
  capacity.add_bytes();
  if (!capacity.fits(0)) return kInfinity;  // only bytes so far
  if (paths.empty()) return 0;
  double scale = enough;
  if (std::isinf(scale)) {
    scale = 0;
    for (const PieceLoad& l : options[0].loads) scale += l.seconds[0] + l.seconds[1];
    scale *= static_cast<double>(arrangement.micro_batches) / arrangement.stages;
  }
  for (const CriticalPath& path : paths) {
    capacity.add_path(path, sent, scale / limits[size_t(path.stage)]);
  }
  double low = 0, high = enough;
  if (std::isinf(high)) {
    for (high = scale; !capacity.fits(high); high *= 2) low = high;
  } else if (!capacity.fits(high)) {
    return high;
  }
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (low + high) / 2;
    (capacity.fits(middle) ? high : low) = middle;
  }
  return low;
}

}  // namespace cleave
