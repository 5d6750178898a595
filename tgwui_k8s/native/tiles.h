// How rows and weight tiles are taken together, so that their sums stay in registers.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace native {

constexpr int kTileColumns = 2 * kLanes;         // output rows of one packed weight tile
constexpr int kNumSums = kNumRegisters * 3 / 4;  // the other registers hold weights and a factor
constexpr int kRowGroup = kNumSums / 2;          // rows that one sweep over a tile serves

template <int N>
using Count = std::integral_constant<int, N>;

inline int num_row_groups(int rows) { return (rows + kRowGroup - 1) / kRowGroup; }
inline int rows_of_group(int rows, int first) { return std::min(kRowGroup, rows - first); }

// As many as leave registers for their weights.
constexpr int tiles_at_once(int rows) { return 6 * rows <= kNumSums ? 2 : 1; }

// Puts 16 inputs of a row beside those of the other rows of its group: to [8][rows][2].
template <typename Number>
inline void put_beside(const Number* from, int rows, Number* to) {
  for (int i = 0; i < kLanes; i += 2) std::memcpy(to + i * rows, from + i, 2 * sizeof(Number));
}

// Calls `work(Count<rows>{}, Count<tiles>{})` for the rows of a group and one tile or two.
template <int Rows = kRowGroup, typename Work>
inline void with_counts(int rows, int tiles, Work work) {
  if constexpr (Rows > 1)
    if (rows < Rows) return with_counts<Rows - 1>(rows, tiles, work);
  if constexpr (tiles_at_once(Rows) == 2)
    if (tiles == 2) return work(Count<Rows>{}, Count<2>{});
  work(Count<Rows>{}, Count<1>{});
}

// Multiplies all groups of rows with the tiles first .. last - 1. `multiply(row, rows, tile, tiles,
// sums)` forms sums [2 x tiles][rows], of each half of each tile, for a group that begins at `row`;
// `finish(row, tile, low, high)` gets them.
template <typename Multiply, typename Finish>
inline void by_groups(int num_rows, int first, int last, Multiply multiply, Finish finish) {
  Floats sums[kNumSums];
  for (int row = 0; row < num_rows; row += kRowGroup) {
    const int rows = rows_of_group(num_rows, row);
    const int most = tiles_at_once(rows);
    for (int tile = first, tiles; tile < last; tile += tiles) {
      tiles = std::min(most, last - tile);
      multiply(row, rows, tile, tiles, sums);
      for (int r = 0; r < rows; ++r)
        for (int t = 0; t < tiles; ++t)
          finish(row + r, tile + t, sums[2 * t * rows + r], sums[(2 * t + 1) * rows + r]);
    }
  }
}

}  // namespace native
