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

// 16 inputs of one row, so that rows of a group stand side by side: [k/2][width][2].
template <typename Number>
inline void put_beside(Number* to, int width, const Number* from) {
  for (int i = 0; i < kLanes; i += 2)
    std::memcpy(to + (int64_t)i * width, from + i, 2 * sizeof(Number));
}

// Calls `work(Count<count>{})` for a count of 1 .. Most.
template <int Most, typename Work>
inline void with_count(int count, Work work) {
  if constexpr (Most > 1)
    if (count < Most) return with_count<Most - 1>(count, work);
  work(Count<Most>{});
}

// Calls `work(Count<rows>{}, Count<tiles>{}, row, tile)` until all groups of rows have met all tiles.
template <typename Work>
inline void by_groups(int rows, int first, int last, Work work) {
  for (int row = 0; row < rows; row += kRowGroup)
    with_count<kRowGroup>(rows - row, [&](auto num_rows) {
      constexpr int kTiles = 6 * decltype(num_rows)::value <= kNumSums ? 2 : 1;
      int tile = first;
      for (; tile + kTiles <= last; tile += kTiles) work(num_rows, Count<kTiles>{}, row, tile);
      for (; tile < last; ++tile) work(num_rows, Count<1>{}, row, tile);
    });
}

}  // namespace native
