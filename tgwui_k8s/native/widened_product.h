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
__attribute__((noinline)) void multiply_widened(const bf16* weights, int64_t tile_size,
                                                const float* x, int k, Floats (*to)[R]) {
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
    for (int r = 0; r < R; ++r) to[c][r] = sums[c][r];
}

// x [rows / kRowGroup][k/2][rows of the group][2] times the tiles first .. last - 1.
template <typename Finish>
inline void multiply_bf16(const bf16* weights, int64_t tile_size, const float* x, int k, int rows,
                          int first, int last, Finish finish) {
  by_groups(rows, first, last, [&](auto num_rows, auto num_tiles, int row, int tile) {
    constexpr int R = decltype(num_rows)::value, T = decltype(num_tiles)::value;
    Floats sums[2 * T][R];
    multiply_widened<R, T>(weights + tile * tile_size, tile_size, x + (int64_t)row * k, k, sums);
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) finish(row + r, tile + t, sums[2 * t][r], sums[2 * t + 1][r]);
  });
}

}  // namespace native
