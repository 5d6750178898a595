// A matrix product with bf16 weights, for processors with BF16 instructions.
//
// Packed weights are [n/32][k/2][32][2]: 32 output rows side by side, input in pairs.

#pragma once

#include "pairs.h"
#include "tiles.h"

namespace native {

constexpr int kPrefetch = 48 * kTileColumns;  // how far ahead of their use weights are fetched

// The rows of a step as they meet bf16 weights: as they are.
class RowGroups {
 public:
  void resize(int /*rows*/, int /*k*/) {}
  int num_parts() const { return 0; }
  void prepare(const bf16* /*rows*/, int /*part*/) {}
  const bf16* data(const bf16* rows) const { return rows; }
};

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
  by_blocks(rows, first, last, [&](auto num_rows, auto num_tiles, int row, int tile) {
    constexpr int R = decltype(num_rows)::value, C = decltype(num_tiles)::value;
    multiply_bf16_tiles<R, C>(
        weights + tile * tile_size, tile_size, x + (int64_t)row * k, k,
        [&](int r, int c, Floats low, Floats high) { finish(row + r, tile + c, low, high); });
  });
}

// Where the pair of inputs `pair` of a column stands in its tile.
inline int64_t pair_offset(int pair, int column, int /*k*/) {
  return ((int64_t)pair * kTileColumns + column) * 2;
}

}  // namespace native
