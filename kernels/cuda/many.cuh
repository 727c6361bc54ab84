// Kernels that work on many tensors in one launch: a table of them is handed over by value, and
// their elements are cut into pieces, one a block, whatever the tensors' sizes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

namespace cleave {

// CUDA 12.1 and later take 32,764 bytes of parameters; the rest is for other ones.
inline constexpr int kTableBytes = 32256;

template <class Item, int kBytes = kTableBytes>
struct Table {
  static constexpr int kMost = (kBytes - 16) / static_cast<int>(sizeof(Item) + 4);
  int count = 0;
  unsigned first[kMost];  // the number of each item's first piece
  Item items[kMost];

  // The item that this piece is of.
  __device__ int item_of(unsigned piece) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first[middle] <= piece) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// Calls launch(table, pieces) with all items of which pieces_of(item) is not 0, in as many tables
// as it takes.
template <int kBytes = kTableBytes, class Item, class PiecesOf, class Launch>
void in_tables(const std::vector<Item>& items, const PiecesOf& pieces_of, const Launch& launch) {
  Table<Item, kBytes> table;
  int64_t pieces = 0;
  const auto flush = [&] {
    if (table.count > 0) launch(table, static_cast<unsigned>(pieces));
    table.count = 0;
    pieces = 0;
  };
  for (const Item& item : items) {
    const int64_t more = pieces_of(item);
    if (more == 0) continue;
    if (table.count == table.kMost || pieces + more > INT32_MAX) flush();
    table.first[table.count] = static_cast<unsigned>(pieces);
    table.items[table.count++] = item;
    pieces += more;
  }
  flush();
}

}  // namespace cleave
