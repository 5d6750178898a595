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

// The largest |x| of `count` numbers, a multiple of 16. Infinite or NaN if any is.
template <typename Number>
inline float largest(const Number* x, int count) {
  Floats most = zeros();
  for (int i = 0; i < count; i += kLanes) most = larger_magnitude(most, load(x + i));
  return largest_magnitude(most);
}

// Rounds a row of activations [k] to int16 [groups][kGroup] and returns their scale. If the row
// holds an infinity or NaN, so is the scale, and all sums become NaN.
inline float quantize_row(const Activation* x, int k, int16_t* to) {
  const float most = largest(x, k);
  const Floats inverse = all(most > 0 ? 32767 / most : 0);
  for (int i = 0; i < k; i += kLanes) store_rounded(to + i, load(x + i) * inverse);
  std::memset(to + k, 0, (num_groups(k) * kGroup - k) * sizeof(int16_t));
  return most / 32767;
}

// `R` rows of x [R][groups][kGroup] times `C` weight tiles; `finish(row, tile, low, high)` gets the
// sums of a tile's columns 0-15 and 16-31.
template <int R, int C, typename Finish>
inline void multiply_int8_tiles(const int8_t* weights, int64_t tile_bytes, const int16_t* x,
                                const float* x_scales, int groups, Finish finish) {
  const int64_t stride = (int64_t)groups * kGroup;
  Floats low[R][C], high[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) low[r][c] = high[r][c] = zeros();
  for (int group = 0; group < groups; ++group, weights += kGroupBytes, x += kGroup) {
    Ints sum_low[R][C], sum_high[R][C];
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sum_low[r][c] = sum_high[r][c] = no_ints();
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      Shorts w_low[C], w_high[C];
      for (int c = 0; c < C; ++c) {
        const int8_t* at = weights + c * tile_bytes + pair * kLine;
        w_low[c] = load_bytes(at);
        w_high[c] = load_bytes(at + kLine / 2);
        prefetch(at + kInt8Prefetch);
      }
      for (int r = 0; r < R; ++r) {
        const Shorts values = all_pairs(x + r * stride + 2 * pair);
        for (int c = 0; c < C; ++c) {
          sum_low[r][c] = add_products(sum_low[r][c], w_low[c], values);
          sum_high[r][c] = add_products(sum_high[r][c], w_high[c], values);
        }
      }
    }
    for (int c = 0; c < C; ++c) {
      const float* scales = (const float*)(weights + c * tile_bytes + kGroup / 2 * kLine);
      const Floats scale_low = load(scales), scale_high = load(scales + kLanes);
      for (int r = 0; r < R; ++r) {
        low[r][c] = add_product(low[r][c], to_floats(sum_low[r][c]), scale_low);
        high[r][c] = add_product(high[r][c], to_floats(sum_high[r][c]), scale_high);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const Floats scale = all(x_scales[r]);
    for (int c = 0; c < C; ++c) finish(r, c, low[r][c] * scale, high[r][c] * scale);
  }
}

// x [rows][groups][kGroup] times the tiles first .. last - 1.
template <typename Finish>
inline void multiply_int8(const int8_t* weights, int64_t tile_bytes, const int16_t* x,
                          const float* x_scales, int groups, int rows, int first, int last,
                          Finish finish) {
  by_blocks(rows, first, last, [&](auto num_rows, auto num_tiles, int row, int tile) {
    constexpr int R = decltype(num_rows)::value, C = decltype(num_tiles)::value;
    multiply_int8_tiles<R, C>(
        weights + tile * tile_bytes, tile_bytes, x + (int64_t)row * groups * kGroup, x_scales + row,
        groups, [&](int r, int c, Floats low, Floats high) { finish(row + r, tile + c, low, high); });
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
