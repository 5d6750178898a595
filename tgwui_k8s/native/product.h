// Linear layers: weights packed for the registers, and their products.
//
// Packed bf16 weights are [n/32][k/2][32][2]: 32 output rows side by side, inputs in pairs. For
// int8 see int8_product.h, for codes codes_product.h.

#pragma once

#include <atomic>
#include <cstring>
#include <vector>

#include "inputs.h"
#include "team.h"

namespace native {

struct Linear {
  int n = 0, k = 0;  // n is padded to whole tiles in the packed weights
  Format format = Format::kBf16;
  int bits = 0, group_size = 0;  // of codes
  char* weights = nullptr;
  std::vector<float> bias;

  int tiles() const { return (n + kTileColumns - 1) / kTileColumns; }
  int64_t tile_bytes() const {
    if (format == Format::kInt8) return (int64_t)num_groups(k) * kGroupBytes;
    if (format == Format::kCodes) return codes_tile().bytes();
    return (int64_t)k * kTileColumns * sizeof(bf16);
  }
  CodesTile codes_tile() const { return {k, group_size, bits}; }
  char* tile(int index) const { return weights + index * tile_bytes(); }
};

// x times the weight tiles first .. last - 1; `finish(row, tile, low, high)` gets the sums of a
// tile's columns 0-15 and 16-31. Every sum is formed in the same order however rows and tiles are
// taken together, so a row's result does not depend on what else is in the batch, bit for bit.
template <typename Finish>
void multiply(const Linear& linear, const Inputs& x, int rows, int first, int last, Finish finish) {
  if (linear.format == Format::kCodes)
    multiply_codes(linear.weights, linear.codes_tile(), x.integers(), x.sums(), x.scales(), rows,
                   first, last, finish);
  else if (linear.format == Format::kInt8)
    multiply_int8((const int8_t*)linear.weights, linear.tile_bytes(), x.integers(), x.scales(),
                  linear.k, rows, first, last, finish);
  else
    multiply_bf16((const bf16*)linear.weights, linear.tile_bytes() / (int64_t)sizeof(bf16),
                  x.for_bf16(), linear.k, rows, first, last, finish);
}

// Where two inputs of a column stand in its tile.
inline int64_t pair_offset(int pair, int column) {
  return ((int64_t)pair * kTileColumns + column) * 2;
}

// Packs the rows that `source(column)` gives (bf16 [k] each, null for none) as one tile.
template <typename Source>
void pack_bf16_tile(bf16* tile, int k, Source source) {
  for (int column = 0; column < kTileColumns; ++column) {
    const bf16* row = source(column);
    if (row == nullptr) continue;  // fresh memory is zero
    for (int pair = 0; pair < k / 2; ++pair)
      std::memcpy(tile + pair_offset(pair, column), row + 2 * pair, 2 * sizeof(bf16));
  }
}

// Row `column` of a tile, as float32 [k].
inline void unpack_bf16_row(const bf16* tile, int column, int k, float* to) {
  for (int pair = 0; pair < k / 2; ++pair) {
    const bf16* at = tile + pair_offset(pair, column);
    to[2 * pair] = bf16_to_float(at[0]);
    to[2 * pair + 1] = bf16_to_float(at[1]);
  }
}

// Calls `pack(tile, row_of)` for every tile; `row_of(column)` is what `source` gives for that output
// row.
template <typename Source, typename Pack>
void for_tiles(Team& team, const Linear& linear, Source source, Pack pack) {
  std::atomic<int> next{0};
  team.run([&](int) {
    for (int tile; (tile = next.fetch_add(1)) < linear.tiles();)
      pack(linear.tile(tile), [&](int column) { return source(tile * kTileColumns + column); });
  });
}

// Fills a layer in bf16 or int8; output row i comes from `source(i)`: bf16 [k], or null for the
// padding.
template <typename Source>
void pack(Team& team, const Linear& linear, Source source) {
  for_tiles(team, linear, source, [&](char* tile, auto row_of) {
    if (linear.format == Format::kInt8)
      pack_int8_tile((int8_t*)tile, linear.k, row_of);
    else
      pack_bf16_tile((bf16*)tile, linear.k, row_of);
  });
}

// Fills a layer in codes; output row i comes from `source(i)`.
template <typename Source>
void pack_codes(Team& team, const Linear& linear, const CodesFormat& format, Source source) {
  for_tiles(team, linear, source, [&](char* tile, auto row_of) {
    pack_codes_tile(tile, linear.codes_tile(), format, row_of);
  });
}

// Output row `index` of a layer as float32 [k], as it is computed with.
inline void unpack_row(const Linear& linear, int index, float* to) {
  const char* tile = linear.tile(index / kTileColumns);
  const int column = index % kTileColumns;
  if (linear.format == Format::kCodes)
    unpack_codes_row(tile, linear.codes_tile(), column, to);
  else if (linear.format == Format::kInt8)
    unpack_int8_row((const int8_t*)tile, column, linear.k, to);
  else
    unpack_bf16_row((const bf16*)tile, column, linear.k, to);
}

}  // namespace native
