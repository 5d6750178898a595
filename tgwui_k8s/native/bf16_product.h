// A matrix product with bf16 weights, for processors with BF16 instructions.

#pragma once

#include "pairs.h"
#include "tiles.h"

namespace native {

constexpr bool kGroupsRows = false;
constexpr int kPrefetch = 48 * kTileColumns;  // how far ahead of their use weights are fetched

// `R` rows of x times `C` weight tiles; `finish(row, tile, low, high)` gets the sums of a tile's
// columns 0-15 and 16-31.
template <int R, int C, typename Finish>
inline void multiply_bf16_tiles(const bf16* weights, int64_t tile_size, const bf16* x, int k,
                                Finish finish) {
  Floats low[R][C], high[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) low[r][c] = high[r][c] = zeros();
  for (int pair = 0; pair < k / 2; ++pair) {
    const bf16* at = weights + (int64_t)pair * 2 * kTileColumns;
    for (int c = 0; c < C; ++c, at += tile_size) {
      const Pairs w_low = load_pairs(at), w_high = load_pairs(at + kTileColumns);
      prefetch(at + kPrefetch);
      prefetch(at + kPrefetch + kTileColumns);
      for (int r = 0; r < R; ++r) {
        const bf16* two = x + (int64_t)r * k + 2 * pair;
        low[r][c] = add_pairs(low[r][c], w_low, two);
        high[r][c] = add_pairs(high[r][c], w_high, two);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) finish(r, c, low[r][c], high[r][c]);
}

// x [rows][k] times the tiles first .. last - 1.
template <typename Finish>
inline void multiply_bf16(const bf16* weights, int64_t tile_size, const bf16* x, int k, int rows,
                          int first, int last, Finish finish) {
  int row = 0;
  const auto rows_of = [&](auto num_rows, auto num_tiles) {
    constexpr int R = decltype(num_rows)::value, C = decltype(num_tiles)::value;
    const auto block = [&](auto tiles, int tile) {
      multiply_bf16_tiles<R, decltype(tiles)::value>(
          weights + tile * tile_size, tile_size, x + (int64_t)row * k, k,
          [&](int r, int c, Floats low, Floats high) { finish(row + r, tile + c, low, high); });
    };
    for (; row + R <= rows; row += R) {
      int tile = first;
      for (; tile + C <= last; tile += C) block(num_tiles, tile);
      for (; tile < last; ++tile) block(Count<1>{}, tile);
    }
  };
  rows_of(Count<8>{}, Count<1>{});
  rows_of(Count<4>{}, Count<2>{});
  rows_of(Count<2>{}, Count<4>{});
  rows_of(Count<1>{}, Count<4>{});
}

}  // namespace native
