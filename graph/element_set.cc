#include "graph/element_set.h"

#include <algorithm>
#include <optional>

namespace cleave {
namespace {

using Interval = ElementSet::Interval;
using Box = ElementSet::Box;

constexpr size_t kMaxBoxes = 256;      // of one view; more: runs are simpler
constexpr size_t kMaxRuns = 1u << 16;  // of one view; more: an interval

struct Dim {
  int64_t stride, size;
};

// The dimensions that matter to the set, by ascending stride: those of size 1 and broadcast ones
// dropped, neighbours that continue each other joined.
std::vector<Dim> normal_dims(const Geometry& view) {
  std::vector<Dim> dims;
  for (size_t d = 0; d < view.shape.size(); ++d) {
    if (view.shape[d] != 1 && view.strides[d] != 0) {
      dims.push_back({view.strides[d], view.shape[d]});
    }
  }
  std::sort(dims.begin(), dims.end(), [](Dim a, Dim b) { return a.stride < b.stride; });
  std::vector<Dim> joined;
  for (Dim d : dims) {
    if (!joined.empty() && d.stride == joined.back().stride * joined.back().size) {
      joined.back().size *= d.size;
    } else {
      joined.push_back(d);
    }
  }
  return joined;
}

// The numbers of [low, high), written with the digits of `strides` (relative to the first of them,
// the last digit unbounded), as boxes.
std::vector<Box> digit_boxes(int64_t low, int64_t high, std::span<const int64_t> strides) {
  if (strides.size() == 1) return {{{low, high}}};
  const int64_t inner = strides.back() / strides.front();
  const auto lower = strides.first(strides.size() - 1);
  std::vector<Box> result;
  const auto put = [&](int64_t from, int64_t to, int64_t first, int64_t last) {
    for (Box& box : digit_boxes(from, to, lower)) {
      box.push_back({first, last});
      result.push_back(std::move(box));
    }
  };
  int64_t first = low / inner;
  const int64_t last = (high - 1) / inner;  // the highest digit's last value
  const int64_t head = low % inner, tail = (high - 1) % inner + 1;
  if (first == last) {
    put(head, tail, first, first + 1);
    return result;
  }
  if (head > 0) {
    put(head, inner, first, first + 1);
    ++first;
  }
  const int64_t full = tail == inner ? last + 1 : last;
  if (first < full) put(0, inner, first, full);
  if (tail < inner) put(0, tail, last, last + 1);
  return result;
}

// The view as boxes on the levels `strides`; nothing when a dimension runs over into the stride of
// the next, or there would be too many.
std::optional<std::vector<Box>> boxes_on(std::span<const int64_t> strides, const Geometry& view) {
  std::vector<Dim> dims = normal_dims(view);
  // Below the first dimension all digits are the offset's.
  if (dims.empty() || dims[0].stride != 1) dims.insert(dims.begin(), {1, 1});
  std::vector<Box> boxes = {{}};
  size_t level = 0;
  for (size_t k = 0; k < dims.size(); ++k) {
    const bool top = k + 1 == dims.size();
    size_t next = level;
    while (next < strides.size() && (top || strides[next] < dims[k + 1].stride)) ++next;
    int64_t start = view.offset / dims[k].stride;
    if (!top) {
      const int64_t room = dims[k + 1].stride / dims[k].stride;
      start %= room;
      if (start + dims[k].size > room) return std::nullopt;
    }
    const auto part =
        digit_boxes(start, start + dims[k].size, strides.subspan(level, next - level));
    if (boxes.size() * part.size() > kMaxBoxes) return std::nullopt;
    std::vector<Box> product;
    for (const Box& low : boxes) {
      for (const Box& high : part) {
        product.push_back(low);
        product.back().insert(product.back().end(), high.begin(), high.end());
      }
    }
    boxes = std::move(product);
    level = next;
  }
  return boxes;
}

// Maximal runs of consecutive elements, ascending.
ElementSet runs_of(const Geometry& view) {
  std::vector<Dim> dims = normal_dims(view);
  int64_t run = 1;
  if (!dims.empty() && dims[0].stride == 1) {
    run = dims[0].size;
    dims.erase(dims.begin());
  }
  int64_t count = 1, last = 0;
  bool many = false;
  for (Dim d : dims) {
    many |= d.size > static_cast<int64_t>(kMaxRuns) / count;
    if (!many) count *= d.size;
    last += (d.size - 1) * d.stride;
  }
  if (many) return {{{{view.offset, view.offset + last + run}}}, false};
  std::vector<int64_t> starts = {view.offset};
  for (Dim d : dims) {
    const size_t before = starts.size();
    for (int64_t i = 1; i < d.size; ++i) {
      for (size_t s = 0; s < before; ++s) starts.push_back(starts[s] + i * d.stride);
    }
  }
  std::sort(starts.begin(), starts.end());
  ElementSet result;
  for (int64_t s : starts) {
    if (!result.boxes.empty() && s <= result.boxes.back()[0].high) {
      result.boxes.back()[0].high = std::max(result.boxes.back()[0].high, s + run);
    } else {
      result.boxes.push_back({{s, s + run}});
    }
  }
  return result;
}

bool overlap(const Box& a, const Box& b) {
  for (size_t l = 0; l < a.size(); ++l) {
    if (a[l].high <= b[l].low || b[l].high <= a[l].low) return false;
  }
  return true;
}

// Appends `a` without `b`, which overlaps it: level by level, what sticks out on either side.
void append_difference(Box a, const Box& b, std::vector<Box>& result) {
  for (size_t l = 0; l < a.size(); ++l) {
    const Interval cut = {std::max(a[l].low, b[l].low), std::min(a[l].high, b[l].high)};
    for (const Interval side : {Interval{a[l].low, cut.low}, Interval{cut.high, a[l].high}}) {
      if (side.low >= side.high) continue;
      result.push_back(a);
      result.back()[l] = side;
    }
    a[l] = cut;
  }
}

// With one level both sets are sorted, and a sweep does. Calls visit(a, b) for each pair that
// overlaps; stops when it returns false.
template <class Visit>
void sweep(const std::vector<Box>& a, const std::vector<Box>& b, const Visit& visit) {
  size_t j = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    while (j < b.size() && b[j][0].high <= a[i][0].low) ++j;
    for (size_t k = j; k < b.size() && b[k][0].low < a[i][0].high; ++k) {
      if (!visit(i, k)) return;
    }
  }
}

}  // namespace

ElementGrid::ElementGrid(std::span<const Geometry> views) {
  strides_ = {1};
  for (const Geometry& view : views) {
    for (Dim d : normal_dims(view)) strides_.push_back(d.stride);
  }
  std::sort(strides_.begin(), strides_.end());
  strides_.erase(std::unique(strides_.begin(), strides_.end()), strides_.end());
  bool boxes = true;
  for (size_t l = 1; l < strides_.size(); ++l) boxes &= strides_[l] % strides_[l - 1] == 0;
  for (size_t v = 0; v < views.size() && boxes; ++v) {
    boxes = boxes_on(strides_, views[v]).has_value();
  }
  if (!boxes) strides_ = {1};
}

ElementSet ElementGrid::set(const Geometry& view) const {
  if (strides_.size() == 1) return runs_of(view);
  return {*boxes_on(strides_, view)};
}

bool overlap(const ElementSet& a, const ElementSet& b) {
  if (a.empty() || b.empty()) return false;
  bool found = false;
  if (a.boxes[0].size() == 1) {
    sweep(a.boxes, b.boxes, [&](size_t, size_t) {
      found = true;
      return false;
    });
    return found;
  }
  for (const Box& x : a.boxes) {
    for (const Box& y : b.boxes) {
      if (overlap(x, y)) return true;
    }
  }
  return false;
}

void subtract(ElementSet& from, const ElementSet& what) {
  if (!what.exact || from.empty() || what.empty()) return;
  std::vector<Box> rest;
  if (from.boxes[0].size() == 1) {
    std::vector<int64_t> low(from.boxes.size());  // what is left of each box, from here on
    for (size_t i = 0; i < low.size(); ++i) low[i] = from.boxes[i][0].low;
    size_t done = 0;
    const auto finish = [&](size_t until) {
      for (; done < until; ++done) {
        const int64_t high = from.boxes[done][0].high;
        if (low[done] < high) rest.push_back({{low[done], high}});
      }
    };
    sweep(from.boxes, what.boxes, [&](size_t i, size_t k) {
      finish(i);
      const Interval cut = what.boxes[k][0];
      if (low[i] < cut.low) rest.push_back({{low[i], cut.low}});
      low[i] = cut.high;
      return true;
    });
    finish(from.boxes.size());
    from.boxes = std::move(rest);
    return;
  }
  for (const Box& cut : what.boxes) {
    rest.clear();
    for (const Box& box : from.boxes) {
      if (overlap(box, cut)) {
        append_difference(box, cut, rest);
      } else {
        rest.push_back(box);
      }
    }
    from.boxes.swap(rest);
  }
}

}  // namespace cleave
