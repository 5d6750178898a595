// A register tile of a matrix product with bf16 weights.
//
// Packed weights are [n/32][k/2][32][2]: 32 output rows side by side, input in pairs (one "pair" is
// two bf16 that VDPBF16PS multiplies and adds in one lane).

#pragma once

#include <cstring>

#include "simd.h"

namespace native {

constexpr int kPrefetch = 48 * kTileColumns;  // how far ahead of their use weights are fetched

// `R` rows of x times `C` weight tiles. Every sum is formed in the same order
// whatever R and C are, so a row's result does not depend on what else is in the batch, bit for
// bit. `finish(row, tile, low, high)` gets the sums of a tile's columns 0-15 and 16-31.
template <int R, int C, typename Finish>
inline void multiply_bf16_tiles(const bf16* weights, int64_t tile_size, const bf16* x, int k,
                                Finish finish) {
  __m512 low[R][C], high[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) low[r][c] = high[r][c] = _mm512_setzero_ps();
  for (int pair = 0; pair < k / 2; ++pair) {
    const bf16* at = weights + (int64_t)pair * 2 * kTileColumns;
    __m512bh values[R];
    for (int r = 0; r < R; ++r) values[r] = broadcast_pair(x + (int64_t)r * k + 2 * pair);
    for (int c = 0; c < C; ++c, at += tile_size) {
      const __m512bh w_low = load_pairs(at), w_high = load_pairs(at + kTileColumns);
      _mm_prefetch((const char*)(at + kPrefetch), _MM_HINT_T0);
      _mm_prefetch((const char*)(at + kPrefetch + kTileColumns), _MM_HINT_T0);
      for (int r = 0; r < R; ++r) {
        low[r][c] = _mm512_dpbf16_ps(low[r][c], w_low, values[r]);
        high[r][c] = _mm512_dpbf16_ps(high[r][c], w_high, values[r]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) finish(r, c, low[r][c], high[r][c]);
}

// Packs the rows that `source(column)` gives (bf16 [k] each, null for none) as one tile.
template <typename Source>
void pack_bf16_tile(bf16* tile, int k, Source source) {
  for (int column = 0; column < kTileColumns; ++column) {
    const bf16* row = source(column);
    for (int pair = 0; pair < k / 2; ++pair) {
      uint32_t bits = 0;
      if (row) std::memcpy(&bits, row + 2 * pair, 4);
      std::memcpy(tile + ((int64_t)pair * kTileColumns + column) * 2, &bits, 4);
    }
  }
}

// Row `column` of a tile, as float32 [k].
inline void unpack_bf16_row(const bf16* tile, int column, int k, float* to) {
  const bf16* at = tile + 2 * column;
  for (int i = 0; i < k; i += 2, at += 2 * kTileColumns) {
    to[i] = bf16_to_float(at[0]);
    to[i + 1] = bf16_to_float(at[1]);
  }
}

}  // namespace native
