// A matrix product with bf16 weights, for processors without BF16 instructions: they are widened to
// float32 in registers, and activations are float32.
//
// Packed weights are [n/32][2][k/2][16][2]: a tile is two strips of 16 output rows side by side,
// input in pairs. One sweep over a strip serves a whole group of rows, so that widening is shared
// and a batch waits for memory once. Rows of a group stand side by side, [k][rows of the group]:
// the factors of a step are one line of the cache.

#pragma once

#include <algorithm>
#include <vector>

#include "pairs.h"
#include "tiles.h"

namespace native {

constexpr int kNumSums = kNumRegisters * 3 / 4;            // the others hold weights and a factor
constexpr int kRowGroup = std::min(kNumSums, kLanes);      // rows that one sweep serves
constexpr int kPrefetch = 48 * kTileColumns;               // how far ahead weights are fetched

// As many strips as leave room for their weights.
constexpr int strips_at_once(int rows) {
  return 4 * rows <= kNumSums * 2 / 3 ? 4 : 2 * rows <= kNumSums ? 2 : 1;
}

// The rows of a step as they meet bf16 weights: copied part by part, by whichever threads.
class RowGroups {
 public:
  void resize(int rows, int k) {
    rows_ = rows;
    k_ = k;
    if (rows > 1) grow(grouped_, (int64_t)rows * k);
  }

  // One row is a group as it is.
  int num_parts() const { return rows_ > 1 ? (k_ + kPartInputs - 1) / kPartInputs : 0; }

  void prepare(const float* rows, int part) {
    const int begin = part * kPartInputs, end = std::min(k_, begin + kPartInputs);
    for (int row = 0; row < rows_; ++row) {
      const int first = row / kRowGroup * kRowGroup, width = std::min(kRowGroup, rows_ - first);
      const float* from = rows + (int64_t)row * k_;
      float* to = grouped_.data() + (int64_t)first * k_ + row - first;
      for (int i = begin; i < end; i += kLanes)
        store_apart(to + (int64_t)i * width, width, load(from + i));
    }
  }

  // [rows / kRowGroup][k][rows of the group]
  const float* data(const float* rows) const { return rows_ > 1 ? grouped_.data() : rows; }

 private:
  static constexpr int kPartInputs = 64;

  int rows_ = 0, k_ = 0;
  std::vector<float> grouped_;
};

// sums [C][R] of a group of `R` rows, x [k][R], and `C` strips.
template <int R, int C>
__attribute__((noinline)) void multiply_strips(const bf16* weights, int64_t strip_size,
                                               const float* x, int k, Floats (*to)[R]) {
  Floats sums[C][R];
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) sums[c][r] = zeros();
  for (int pair = 0; pair < k / 2; ++pair, weights += 2 * kLanes, x += 2 * R) {
    Pairs w[C];
    for (int c = 0; c < C; ++c) {
      w[c] = load_pairs(weights + c * strip_size);
      prefetch(weights + c * strip_size + kPrefetch);
    }
    for (int r = 0; r < R; ++r) {
      const Floats factor = all(x[r]);
      for (int c = 0; c < C; ++c) sums[c][r] = add_product(sums[c][r], w[c].first, factor);
    }
    for (int r = 0; r < R; ++r) {
      const Floats factor = all(x[R + r]);
      for (int c = 0; c < C; ++c) sums[c][r] = add_product(sums[c][r], w[c].second, factor);
    }
  }
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) to[c][r] = sums[c][r];
}

// A group of `R` rows times the tiles first .. last - 1.
template <int R, typename Finish>
inline void multiply_group(const bf16* weights, int64_t tile_size, const float* x, int k, int first,
                           int last, Finish finish) {
  constexpr int kTiles = std::max(1, strips_at_once(R) / 2);
  const auto block = [&](auto num_tiles, int tile) {
    constexpr int T = decltype(num_tiles)::value, C = std::min(strips_at_once(R), 2 * T);
    const bf16* strips = weights + tile * tile_size;
    const int64_t strip_size = tile_size / 2;
    Floats sums[2 * T][R];
    for (int strip = 0; strip < 2 * T; strip += C)
      multiply_strips<R, C>(strips + strip * strip_size, strip_size, x, k, sums + strip);
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) finish(r, tile + t, sums[2 * t][r], sums[2 * t + 1][r]);
  };
  int tile = first;
  for (; tile + kTiles <= last; tile += kTiles) block(Count<kTiles>{}, tile);
  for (; tile < last; ++tile) block(Count<1>{}, tile);
}

// x (see `RowGroups`) times the tiles first .. last - 1.
template <typename Finish>
inline void multiply_bf16(const bf16* weights, int64_t tile_size, const float* x, int k, int rows,
                          int first, int last, Finish finish) {
  for (int row = 0; row < rows; row += kRowGroup)
    with_count<kRowGroup>(rows - row, [&](auto num_rows) {
      multiply_group<decltype(num_rows)::value>(
          weights, tile_size, x + (int64_t)row * k, k, first, last,
          [&](int r, int tile, Floats low, Floats high) { finish(row + r, tile, low, high); });
    });
}

// Where the pair of inputs `pair` of a column stands in its tile.
inline int64_t pair_offset(int pair, int column, int k) {
  return ((int64_t)(column / kLanes) * (k / 2) + pair) * 2 * kLanes + column % kLanes * 2;
}

}  // namespace native
