// A register tile of a matrix product with int8 weights.
//
// Weights are rounded to 8 bits by groups of 64 inputs that share a scale: w = scale * q, where
// scale = max |w| / 127. The rows they are multiplied with are rounded to 16 bits with one scale
// each, an error below that of the bf16 they come from (at most sqrt(k) / 2^17 of the row's norm),
// and VPDPWSSD sums a group's products exactly: 64 * 127 * 32767 < 2^31. Groups are added in
// float32, in order.
//
// Packed weights are [n/32][k/64] blocks of [32][32][2] int8 (input in pairs, 32 output rows side
// by side: one cache line) followed by 32 float32 scales.

#pragma once

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace native {

constexpr int kGroup = 64;  // inputs that share a scale; the last group of a row is zero-padded
constexpr int kLine = 2 * kTileColumns;  // bytes of one pair of inputs for a whole tile
constexpr int kGroupBytes = kGroup / 2 * kLine + kTileColumns * (int)sizeof(float);
constexpr int kInt8Prefetch = 3 << 10;  // bytes

inline int num_groups(int k) { return (k + kGroup - 1) / kGroup; }

// The largest |x| of `count` bf16, a multiple of 16. Infinite or NaN if any is.
inline float largest(const bf16* x, int count) {
  __m512i bits = _mm512_setzero_si512();  // compared as integers, NaN is the largest of all
  for (int i = 0; i < count; i += kLanes) {
    const __m512i magnitude =
        _mm512_and_si512(_mm512_castps_si512(load_bf16(x + i)), _mm512_set1_epi32(0x7fffffff));
    bits = _mm512_max_epu32(bits, magnitude);
  }
  const uint32_t most = _mm512_reduce_max_epu32(bits);
  float result;
  std::memcpy(&result, &most, 4);
  return result;
}

// Rounds a row of bf16 [k] to int16 [groups][kGroup] and returns their scale. If the row holds an
// infinity or NaN, so is the scale, and all sums become NaN.
inline float quantize_row(const bf16* x, int k, int16_t* to) {
  const float most = largest(x, k);
  const __m512 inverse = _mm512_set1_ps(most > 0 ? 32767 / most : 0);
  for (int i = 0; i < k; i += kLanes) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(x + i), inverse));
    _mm256_storeu_si256((__m256i*)(to + i), _mm512_cvtsepi32_epi16(rounded));
  }
  std::memset(to + k, 0, (num_groups(k) * kGroup - k) * sizeof(int16_t));
  return most / 32767;
}

// `R` rows of x [R][groups][kGroup] times `C` weight tiles; see `multiply_bf16_tiles`.
template <int R, int C, typename Finish>
inline void multiply_int8_tiles(const int8_t* weights, int64_t tile_bytes, const int16_t* x,
                                const float* x_scales, int groups, Finish finish) {
  const int64_t stride = (int64_t)groups * kGroup;
  __m512 low[R][C], high[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) low[r][c] = high[r][c] = _mm512_setzero_ps();
  for (int group = 0; group < groups; ++group, weights += kGroupBytes, x += kGroup) {
    __m512i sum_low[R][C], sum_high[R][C];
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sum_low[r][c] = sum_high[r][c] = _mm512_setzero_si512();
    for (int pair = 0; pair < kGroup / 2; ++pair) {
      __m512i w_low[C], w_high[C];
      for (int c = 0; c < C; ++c) {
        const int8_t* at = weights + c * tile_bytes + pair * kLine;
        w_low[c] = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)at));
        w_high[c] = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(at + kLine / 2)));
        _mm_prefetch((const char*)(at + kInt8Prefetch), _MM_HINT_T0);
      }
      for (int r = 0; r < R; ++r) {
        const __m512i values = broadcast_32(x + r * stride + 2 * pair);
        for (int c = 0; c < C; ++c) {
          sum_low[r][c] = _mm512_dpwssd_epi32(sum_low[r][c], w_low[c], values);
          sum_high[r][c] = _mm512_dpwssd_epi32(sum_high[r][c], w_high[c], values);
        }
      }
    }
    for (int c = 0; c < C; ++c) {
      const float* scales = (const float*)(weights + c * tile_bytes + kGroup / 2 * kLine);
      const __m512 scale_low = _mm512_loadu_ps(scales);
      const __m512 scale_high = _mm512_loadu_ps(scales + kLanes);
      for (int r = 0; r < R; ++r) {
        low[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_low[r][c]), scale_low, low[r][c]);
        high[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_high[r][c]), scale_high, high[r][c]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const __m512 scale = _mm512_set1_ps(x_scales[r]);
    for (int c = 0; c < C; ++c)
      finish(r, c, _mm512_mul_ps(low[r][c], scale), _mm512_mul_ps(high[r][c], scale));
  }
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
      const __m512 inverse = _mm512_set1_ps(most > 0 ? 127 / most : 0);
      alignas(64) int8_t quantized[kGroup] = {};
      for (int i = 0; i < count; i += kLanes) {
        const __m512 scaled = _mm512_mul_ps(load_bf16(row + first + i), inverse);
        _mm_store_si128((__m128i*)(quantized + i),
                        _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(scaled)));
      }
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
