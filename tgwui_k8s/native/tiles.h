// How rows and weight tiles are taken together, so that their sums stay in registers.

#pragma once

#include <type_traits>

#include "simd.h"

namespace native {

constexpr int kTileColumns = 2 * kLanes;  // output rows of one packed weight tile

template <int N>
using Count = std::integral_constant<int, N>;

// Calls `work(Count<count>{})` for a count of 1 .. Most.
template <int Most, typename Work>
inline void with_count(int count, Work work) {
  if constexpr (Most > 1)
    if (count < Most) return with_count<Most - 1>(count, work);
  work(Count<Most>{});
}

// Calls `work(Count<rows>{}, Count<tiles>{}, row, tile)` until all rows have met all tiles.
template <typename Work>
inline void by_blocks(int rows, int first, int last, Work work) {
  int row = 0;
  const auto rows_of = [&](auto num_rows, auto num_tiles) {
    constexpr int R = decltype(num_rows)::value, C = decltype(num_tiles)::value;
    for (; row + R <= rows; row += R) {
      int tile = first;
      for (; tile + C <= last; tile += C) work(num_rows, num_tiles, row, tile);
      for (; tile < last; ++tile) work(num_rows, Count<1>{}, row, tile);
    }
  };
  if constexpr (kNumRegisters >= 32) {
    rows_of(Count<8>{}, Count<1>{});
    rows_of(Count<4>{}, Count<2>{});
    rows_of(Count<2>{}, Count<4>{});
    rows_of(Count<1>{}, Count<4>{});
  } else {
    rows_of(Count<2>{}, Count<1>{});
    rows_of(Count<1>{}, Count<1>{});
  }
}

}  // namespace native
