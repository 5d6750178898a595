// A register tile of a matrix product with int8 weights.
//
// Weights are rounded to 8 bits by groups of 64 inputs that share a scale: w = scale * q, where
// scale = max |w| / 127. The rows they are multiplied with are rounded to 16 bits with one scale
// each, an error below what bf16 would lose (at most sqrt(k) / 2^17 of the row's norm),
// and a group's products are summed exactly in int32: 64 * 127 * 32767 < 2^31. Groups are added in
// float32, in order.
//
// Packed weights are [n/32][k/64] blocks of [32][32][2] int8 (input in pairs, 32 output rows side
// by side: one cache line) followed by 32 float32 scales.

#pragma once

#include <algorithm>
#include <cstring>

#include "pairs.h"
#include "tiles.h"

namespace native {

constexpr int kGroup = 64;  // inputs that share a scale; the last group of a row is zero-padded
constexpr int kLine = 2 * kTileColumns;  // bytes of one pair of inputs for a whole tile
constexpr int kGroupBytes = kGroup / 2 * kLine + kTileColumns * (int)sizeof(float);
constexpr int kInt8Prefetch = 3 << 10;  // bytes

inline int num_groups(int k) { return (k + kGroup - 1) / kGroup; }
inline int padded(int k) { return num_groups(k) * kGroup; }

// The largest |x| of `count` numbers, a multiple of 16. Infinite or NaN if any is.
template <typename Number>
inline float largest(const Number* x, int count) {
  Floats most = zeros();
  for (int i = 0; i < count; i += kLanes) most = larger_magnitude(most, load(x + i));
  return largest_magnitude(most);
}

// Rounds a group of rows of activations [rows][k] to int16, side by side [padded k/2][rows][2], and
// tells each row's scale. If a row holds an infinity or NaN, so is its scale, and all its sums become
// NaN.
template <typename Number>
inline void quantize_rows(const Number* x, int k, int rows, int16_t* to, float* scales) {
  float inverses[kRowGroup];
  for (int r = 0; r < rows; ++r) {
    const float most = largest(x + (int64_t)r * k, k);
    inverses[r] = most > 0 ? 32767 / most : 0;
    scales[r] = most / 32767;
  }
  for (int i = 0; i < padded(k); i += kLanes)
    for (int r = 0; r < rows; ++r) {
      alignas(64) int16_t rounded[kLanes] = {};
      if (i < k) store_rounded(rounded, load(x + (int64_t)r * k + i) * all(inverses[r]));
      put_beside(rounded, rows, to + i * rows + 2 * r);
    }
}

// A group of `R` rows, x [groups][kGroup/2][R][2], times `T` weight tiles; to [2 T][R] are the sums
// of each half tile, not scaled by the rows' scales yet.
template <int R, int T>
inline void multiply_int8_tiles(const int8_t* weights, int64_t tile_bytes, const int16_t* x,
                                int groups, Floats* to) {
  constexpr int C = 2 * T;
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) to[c * R + r] = zeros();
  for (int group = 0; group < groups; ++group, weights += kGroupBytes) {
    Ints sums[C][R];
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) sums[c][r] = no_ints();
    for (int pair = 0; pair < kGroup / 2; ++pair, x += 2 * R) {
      Shorts w[C];
      for (int c = 0; c < C; ++c) {
        const int8_t* at = weights + c / 2 * tile_bytes + pair * kLine + c % 2 * kLine / 2;
        w[c] = load_bytes(at);
        if (c % 2 == 0) prefetch(at + kInt8Prefetch);
      }
      for (int r = 0; r < R; ++r) {
        const Shorts factors = all_pairs(x + 2 * r);
        for (int c = 0; c < C; ++c) sums[c][r] = add_products(sums[c][r], w[c], factors);
      }
    }
    for (int c = 0; c < C; ++c) {
      const char* scales = (const char*)weights + c / 2 * tile_bytes + kGroup / 2 * kLine;
      const Floats scale = load((const float*)scales + c % 2 * kLanes);
      for (int r = 0; r < R; ++r)
        to[c * R + r] = add_product(to[c * R + r], to_floats(sums[c][r]), scale);
    }
  }
}

// The same for `rows` and `tiles`; outside of its callers, so that it is compiled once.
__attribute__((noinline)) inline void multiply_int8(const int8_t* weights, int64_t tile_bytes,
                                                    const int16_t* x, int groups, int rows,
                                                    int tiles, Floats* to) {
  with_counts(rows, tiles, [&](auto r, auto t) {
    multiply_int8_tiles<r(), t()>(weights, tile_bytes, x, groups, to);
  });
}

// x [row groups][padded k/2][rows of the group][2] times the tiles first .. last - 1.
template <typename Finish>
inline void multiply_int8(const int8_t* weights, int64_t tile_bytes, const int16_t* x,
                          const float* x_scales, int k, int num_rows, int first, int last,
                          Finish finish) {
  const auto multiply = [&](int row, int rows, int tile, int tiles, Floats* sums) {
    multiply_int8(weights + tile * tile_bytes, tile_bytes, x + (int64_t)row * padded(k),
                  num_groups(k), rows, tiles, sums);
  };
  by_groups(num_rows, first, last, multiply, [&](int row, int tile, Floats low, Floats high) {
    const Floats scale = all(x_scales[row]);
    finish(row, tile, low * scale, high * scale);
  });
}

// Quantizes and packs the rows that `source(column)` gives (bf16 [k] each, null for none).
template <typename Source>
void pack_int8_tile(int8_t* tile, int k, Source source) {
  for (int column = 0; column < kTileColumns; ++column) {
    const bf16* row = source(column);
    if (row == nullptr) continue;  // fresh memory is zero
    int8_t* block = tile;
    for (int first = 0; first < k; first += kGroup, block += kGroupBytes) {
      const int count = std::min(kGroup, k - first);
      const float most = largest(row + first, count), scale = most / 127;
      const Floats inverse = all(most > 0 ? 127 / most : 0);
      alignas(64) int8_t quantized[kGroup] = {};
      for (int i = 0; i < count; i += kLanes)
        store_rounded(quantized + i, load(row + first + i) * inverse);
      for (int pair = 0; pair < kGroup / 2; ++pair)
        std::memcpy(block + pair * kLine + 2 * column, quantized + 2 * pair, 2);
      std::memcpy(block + kGroup / 2 * kLine + column * sizeof(float), &scale, sizeof(float));
    }
  }
}

// Row `column` of a tile, as float32 [k].
inline void unpack_int8_row(const int8_t* tile, int column, int k, float* to) {
  for (int i = 0; i < k; ++i) {
    const int8_t* block = tile + (int64_t)(i / kGroup) * kGroupBytes;
    const int offset = i % kGroup;
    float scale;
    std::memcpy(&scale, block + kGroup / 2 * kLine + column * sizeof(float), sizeof(float));
    to[i] = scale * block[offset / 2 * kLine + 2 * column + offset % 2];
  }
}

}  // namespace native
