#include "viz/columns.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

namespace cleave {
namespace {

constexpr int kOrderSweeps = 12;
constexpr int kPlaceSweeps = 40;
constexpr double kFar = 1e9, kSnap = 200;
// How much items want to stand below those that they are linked to: in the next row, or further
// off; and how much links that pass a row want to stay where they would be straight.
constexpr double kNeighbour = 2, kDistant = 0.02, kLane = 0.2;

size_t at(int32_t i) { return static_cast<size_t>(i); }

class ColumnFinder {
 public:
  explicit ColumnFinder(const ColumnProblem& p) : p_(p) {
    int32_t rows = 0;
    for (const auto& item : p.items) rows = std::max(rows, item.row + 1);
    rows_.resize(at(rows));
    for (size_t i = 0; i < p.items.size(); ++i) {
      points_.push_back({p.items[i].width, p.items[i].row, p.items[i].cluster, {}, {}, {}, {}});
      rows_[at(p.items[i].row)].push_back(static_cast<int32_t>(i));
    }
    std::vector<int32_t> outer(p.items.size()), inner(p.items.size());  // links above and below
    for (const auto& [a, b] : p.links) {
      const bool down = p.items[at(a)].row < p.items[at(b)].row;
      ++inner[at(down ? a : b)], ++outer[at(down ? b : a)];
    }
    for (const auto& [a, b] : p.links) {
      const bool down = p.items[at(a)].row < p.items[at(b)].row;
      const bool only = inner[at(down ? a : b)] == 1 || outer[at(down ? b : a)] == 1;
      chains_.push_back(add_link(a, b, only));
    }
  }

  Columns result() {
    order();
    place();
    straighten();
    Columns c;
    c.left.resize(p_.items.size());
    double first = std::numeric_limits<double>::max(), last = 0;
    for (const Point& p : points_) first = std::min(first, p.x - p.width / 2);
    for (size_t i = 0; i < points_.size(); ++i) {
      points_[i].x -= first;
      last = std::max(last, points_[i].x + points_[i].width / 2);
      if (i < c.left.size()) c.left[i] = points_[i].x - points_[i].width / 2;
    }
    for (const auto& chain : chains_) {
      c.passes.emplace_back();
      for (int32_t point : chain) c.passes.back().push_back(points_[at(point)].x);
    }
    c.width = points_.empty() ? 0 : last;
    return c;
  }

 private:
  struct Link {
    int32_t to = 0;
    double weight = 1;
  };
  struct Point {  // an item, or where a link passes a row
    double width = 0;
    int32_t row = 0;
    int32_t cluster = -1;
    std::vector<int32_t> above, below;           // in the next rows
    std::vector<Link> pulls_above, pulls_below;  // of items: what they are linked to
    double x = 0;                                // its middle
    double key = 0;
    bool passing = false;
  };

  void join(int32_t upper, int32_t lower) {
    points_[at(upper)].below.push_back(lower);
    points_[at(lower)].above.push_back(upper);
  }

  // `only`: of one of its ends, on that side.
  std::vector<int32_t> add_link(int32_t a, int32_t b, bool only) {
    const bool down = points_[at(a)].row < points_[at(b)].row;
    const int32_t top = down ? a : b, bottom = down ? b : a;
    if (points_[at(a)].row == points_[at(b)].row) return {};
    std::vector<int32_t> chain;
    int32_t last = top;
    for (int32_t r = points_[at(top)].row + 1; r < points_[at(bottom)].row; ++r) {
      const auto point = static_cast<int32_t>(points_.size());
      points_.push_back({p_.lane, r, -1, {}, {}, {}, {}, 0, 0, true});
      rows_[at(r)].push_back(point);
      join(last, point);
      ends_[point] = {top, bottom};
      last = point;
      chain.push_back(point);
    }
    join(last, bottom);
    const double weight = chain.empty() || only ? kNeighbour : kDistant;
    points_[at(top)].pulls_below.push_back({bottom, weight});
    points_[at(bottom)].pulls_above.push_back({top, weight});
    if (!down) std::reverse(chain.begin(), chain.end());
    return chain;
  }

  // --- Order -------------------------------------------------------------------------------------

  void number(const std::vector<int32_t>& row) {
    for (size_t i = 0; i < row.size(); ++i) {
      points_[at(row[i])].key = static_cast<double>(i) - 0.5 * static_cast<double>(row.size());
    }
  }

  // Sorts a row by the means of the neighbours on one side; members of a cluster stay together.
  void sort_row(std::vector<int32_t>& row, bool by_above) {
    std::map<int32_t, std::pair<double, double>> clusters;
    std::vector<double> mean(row.size());
    for (size_t i = 0; i < row.size(); ++i) {
      const Point& p = points_[at(row[i])];
      const auto& links = by_above ? p.above : p.below;
      double sum = 0;
      for (int32_t l : links) sum += points_[at(l)].key;
      mean[i] = links.empty() ? p.key : sum / static_cast<double>(links.size());
      if (p.cluster < 0) continue;
      clusters[p.cluster].first += mean[i];
      clusters[p.cluster].second += 1;
    }
    std::vector<size_t> index(row.size());
    std::iota(index.begin(), index.end(), size_t{0});
    const auto cluster_key = [&](size_t i) {
      const int32_t c = points_[at(row[i])].cluster;
      if (c < 0) return mean[i];
      const auto& [sum, count] = clusters[c];
      return sum / count;
    };
    std::stable_sort(index.begin(), index.end(), [&](size_t a, size_t b) {
      const double x = cluster_key(a), y = cluster_key(b);
      if (x != y) return x < y;
      const int32_t c = points_[at(row[a])].cluster, d = points_[at(row[b])].cluster;
      return c != d ? c < d : mean[a] < mean[b];
    });
    std::vector<int32_t> sorted;
    for (size_t i : index) sorted.push_back(row[i]);
    row = std::move(sorted);
    number(row);
  }

  int64_t crossings() const {
    int64_t count = 0;
    for (const auto& row : rows_) {
      std::vector<std::pair<double, double>> ends;
      for (int32_t p : row) {
        for (int32_t l : points_[at(p)].below)
          ends.emplace_back(points_[at(p)].key, points_[at(l)].key);
      }
      for (size_t i = 0; i < ends.size(); ++i) {
        for (size_t j = i + 1; j < ends.size(); ++j) {
          count += (ends[i].first - ends[j].first) * (ends[i].second - ends[j].second) < 0;
        }
      }
    }
    return count;
  }

  void order() {
    for (const auto& row : rows_) number(row);
    auto best = rows_;
    int64_t fewest = crossings();
    for (int sweep = 0; sweep < kOrderSweeps && fewest > 0; ++sweep) {
      const bool down = sweep % 2 == 0;
      for (size_t i = 0; i < rows_.size(); ++i) {
        sort_row(rows_[down ? i : rows_.size() - 1 - i], down);
      }
      if (const int64_t now = crossings(); now < fewest) {
        fewest = now;
        best = rows_;
      }
    }
    rows_ = best;
  }

  // --- Places ------------------------------------------------------------------------------------

  double distance(int32_t a, int32_t b) const {
    const Point &p = points_[at(a)], &q = points_[at(b)];
    const bool lanes = p.passing && q.passing;
    return (p.width + q.width) / 2 + (lanes ? 0 : p.passing || q.passing ? p_.gap / 2 : p_.gap);
  }

  // The places nearest to the wished ones, by weighted least squares, that keep the order and the
  // distances: isotonic regression.
  void place_row(const std::vector<int32_t>& row, const std::vector<double>& wish,
                 const std::vector<double>& weight) {
    struct Block {
      double sum = 0, weight = 0;
      size_t count = 0;
      double mean() const { return sum / weight; }
    };
    std::vector<double> shift(row.size());  // from the first
    for (size_t i = 1; i < row.size(); ++i) shift[i] = shift[i - 1] + distance(row[i - 1], row[i]);
    std::vector<Block> blocks;
    for (size_t i = 0; i < row.size(); ++i) {
      blocks.push_back({(wish[i] - shift[i]) * weight[i], weight[i], 1});
      while (blocks.size() > 1 && blocks[blocks.size() - 2].mean() >= blocks.back().mean()) {
        const Block last = blocks.back();
        blocks.pop_back();
        blocks.back().sum += last.sum;
        blocks.back().weight += last.weight;
        blocks.back().count += last.count;
      }
    }
    size_t i = 0;
    for (const Block& b : blocks) {
      for (size_t k = 0; k < b.count; ++k, ++i) points_[at(row[i])].x = b.mean() + shift[i];
    }
  }

  void place() {
    for (const auto& row : rows_) {
      double x = 0;
      for (size_t i = 0; i < row.size(); ++i) {
        if (i > 0) x += distance(row[i - 1], row[i]);
        points_[at(row[i])].x = x;
      }
      for (int32_t p : row) points_[at(p)].x -= x / 2;
    }
    for (int sweep = 0; sweep < kPlaceSweeps; ++sweep) {
      for (size_t i = 0; i < rows_.size(); ++i) {
        const auto& row = rows_[sweep % 2 == 0 ? i : rows_.size() - 1 - i];
        std::vector<double> wish, weight;
        for (int32_t id : row) {
          const Point& p = points_[at(id)];
          double sum = 0.01 * p.x, total = 0.01;
          // The last sweeps look at both sides, so that links become straight.
          const bool both = sweep >= kPlaceSweeps / 2;
          for (const auto* links : {&p.pulls_above, &p.pulls_below}) {
            if (!both && (links == &p.pulls_above) != (sweep % 2 == 0)) continue;
            for (const Link& l : *links) {
              sum += l.weight * points_[at(l.to)].x;
              total += l.weight;
            }
          }
          wish.push_back(p.passing ? aim(id) : sum / total);
          weight.push_back(p.passing ? kLane : total);
        }
        place_row(row, wish, weight);
      }
    }
  }

  // Between the ends of its link.
  double aim(int32_t point) const {
    const auto& [a, b] = ends_.at(point);
    const double x = points_[at(a)].x, y = points_[at(b)].x;
    return std::clamp(points_[at(point)].x, std::min(x, y), std::max(x, y));
  }

  // By point: where it can be without passing its neighbours in the row.
  std::pair<double, double> room(int32_t point) const {
    const auto& row = rows_[at(points_[at(point)].row)];
    const size_t i = place_in_row_[at(point)];
    return {i == 0 ? -kFar : points_[at(row[i - 1])].x + distance(row[i - 1], row[i]),
            i + 1 == row.size() ? kFar : points_[at(row[i + 1])].x - distance(row[i], row[i + 1])};
  }

  // Items straight below the one that they are linked to, links straight over as many rows as their
  // neighbours leave room for.
  void straighten() {
    place_in_row_.resize(points_.size());
    for (const auto& row : rows_) {
      for (size_t i = 0; i < row.size(); ++i) place_in_row_[at(row[i])] = i;
    }
    for (const auto& row : rows_) straighten_items(row);
    for (int sweep = 0; sweep < 3; ++sweep) {
      for (const auto& chain : chains_) straighten_chain(chain);
    }
  }

  // Links that pass the row give way.
  void straighten_items(const std::vector<int32_t>& row) {
    std::vector<double> wish, weight;
    for (int32_t id : row) {
      const Point& p = points_[at(id)];
      const auto main = std::find_if(p.pulls_above.begin(), p.pulls_above.end(),
                                     [](const Link& l) { return l.weight >= kNeighbour; });
      const bool near =
          main != p.pulls_above.end() && std::abs(points_[at(main->to)].x - p.x) < kSnap;
      wish.push_back(p.passing ? aim(id) : near ? points_[at(main->to)].x : p.x);
      weight.push_back(p.passing ? 1e-3 : 1);
    }
    place_row(row, wish, weight);
  }

  void straighten_chain(const std::vector<int32_t>& chain) {
    for (size_t begin = 0; begin < chain.size();) {
      double low = -kFar, high = kFar, sum = 0;
      size_t end = begin;
      for (; end < chain.size(); ++end) {
        const auto [left, right] = room(chain[end]);
        if (std::max(low, left) > std::min(high, right)) break;
        low = std::max(low, left), high = std::min(high, right);
        sum += aim(chain[end]);
      }
      if (end > begin) {
        const double x = std::clamp(sum / static_cast<double>(end - begin), low, high);
        for (size_t i = begin; i < end; ++i) points_[at(chain[i])].x = x;
      }
      begin = std::max(end, begin + 1);
    }
  }

  const ColumnProblem& p_;
  std::vector<Point> points_;
  std::vector<std::vector<int32_t>> rows_;
  std::vector<std::vector<int32_t>> chains_;             // by link: its points between the ends
  std::map<int32_t, std::pair<int32_t, int32_t>> ends_;  // by passing point: of its link
  std::vector<size_t> place_in_row_;                     // by point
};

}  // namespace

Columns find_columns(const ColumnProblem& problem) { return ColumnFinder(problem).result(); }

}  // namespace cleave
