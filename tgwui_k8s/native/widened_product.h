// A matrix product with bf16 weights, for processors without BF16 instructions: they are widened to
// float32 in registers, and activations are float32.
//
// One sweep over a tile serves a whole group of rows, so that widening is shared and a batch waits
// for memory once. The rows of a group stand side by side, so that their factors are neighbours.

#pragma once

#include "pairs.h"
#include "tiles.h"

namespace native {

constexpr bool kGroupsRows = true;
constexpr int kPrefetch = 48 * kTileColumns;  // how far ahead of their use weights are fetched

// A group of `R` rows, x [k/2][R][2], times `T` weight tiles; to [2 T][R] are the sums of each half
// tile.
template <int R, int T>
inline void multiply_widened_tiles(const bf16* weights, int64_t tile_size, const float* x, int k,
                                   Floats* to) {
  constexpr int C = 2 * T;
  Floats sums[C][R];
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) sums[c][r] = zeros();
  for (int pair = 0; pair < k / 2; ++pair, weights += 2 * kTileColumns, x += 2 * R) {
    Pairs w[C];
    for (int c = 0; c < C; ++c) {
      const bf16* at = weights + c / 2 * tile_size + c % 2 * kTileColumns;
      w[c] = load_pairs(at);
      prefetch(at + kPrefetch);
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[c][r] = add_product(sums[c][r], w[c].first, all(x[2 * r]));
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c)
        sums[c][r] = add_product(sums[c][r], w[c].second, all(x[2 * r + 1]));
  }
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) to[c * R + r] = sums[c][r];
}

// The same for `rows` and `tiles`; outside of its callers, so that it is compiled once.
__attribute__((noinline)) inline void multiply_widened(const bf16* weights, int64_t tile_size,
                                                       const float* x, int k, int rows, int tiles,
                                                       Floats* to) {
  with_counts(rows, tiles, [&](auto r, auto t) {
    multiply_widened_tiles<r(), t()>(weights, tile_size, x, k, to);
  });
}

// x [row groups][k/2][rows of the group][2] times the tiles first .. last - 1.
template <typename Finish>
inline void multiply_bf16(const bf16* weights, int64_t tile_size, const float* x, int k,
                          int num_rows, int first, int last, Finish finish) {
  const auto multiply = [&](int row, int rows, int tile, int tiles, Floats* sums) {
    multiply_widened(weights + tile * tile_size, tile_size, x + (int64_t)row * k, k, rows, tiles,
                     sums);
  };
  by_groups(num_rows, first, last, multiply, finish);
}

}  // namespace native
