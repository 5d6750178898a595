// Linear layers: weights packed for the registers, in bf16 or int8, and their products.

#pragma once

#include <atomic>
#include <type_traits>
#include <vector>

#include "bf16_product.h"
#include "int8_product.h"
#include "team.h"

namespace native {

template <int N>
using Count = std::integral_constant<int, N>;

struct Linear {
  int n = 0, k = 0;  // n is padded to whole tiles in the packed weights
  bool is_int8 = false;
  char* weights = nullptr;
  std::vector<float> bias;

  int tiles() const { return (n + kTileColumns - 1) / kTileColumns; }
  int64_t tile_bytes() const {
    return is_int8 ? (int64_t)num_groups(k) * kGroupBytes : (int64_t)k * kTileColumns * sizeof(bf16);
  }
  char* tile(int index) const { return weights + index * tile_bytes(); }
};

// Rows that are multiplied with linear layers.
struct Inputs {
  int k = 0;
  std::vector<bf16> values;       // [rows][k]
  bool is_quantized = false;      // they meet int8 weights, so these are needed, too:
  std::vector<int16_t> integers;  // [rows][num_groups][kGroup]
  std::vector<float> scales;      // [rows]

  void resize(int rows) {
    grow(values, (int64_t)rows * k);
    if (!is_quantized) return;
    grow(integers, (int64_t)rows * num_groups(k) * kGroup);
    grow(scales, rows);
  }

  bf16* row(int index) { return values.data() + (int64_t)index * k; }

  // To be called when a row's values are complete.
  void quantize(int index) {
    if (!is_quantized) return;
    int16_t* to = integers.data() + (int64_t)index * num_groups(k) * kGroup;
    scales[index] = quantize_row(row(index), k, to);
  }
};

// x times the weight tiles first .. last - 1; `finish(row, tile, low, high)` gets the sums of a
// tile's columns 0-15 and 16-31. Every sum is formed in the same order however rows and tiles are
// taken together, so a row's result does not depend on what else is in the batch, bit for bit.
template <typename Finish>
void multiply(const Linear& linear, const Inputs& x, int rows, int first, int last, Finish finish) {
  const int k = linear.k, groups = num_groups(k);
  const int64_t size = linear.tile_bytes();
  int row = 0;
  const auto block = [&](auto num_rows, auto num_tiles, int tile) {
    constexpr int R = decltype(num_rows)::value, C = decltype(num_tiles)::value;
    const auto done = [&](int r, int c, __m512 low, __m512 high) {
      finish(row + r, tile + c, low, high);
    };
    if (linear.is_int8)
      multiply_int8_tiles<R, C>((const int8_t*)linear.tile(tile), size,
                                x.integers.data() + (int64_t)row * groups * kGroup,
                                x.scales.data() + row, groups, done);
    else
      multiply_bf16_tiles<R, C>((const bf16*)linear.tile(tile), size / (int64_t)sizeof(bf16),
                                x.values.data() + (int64_t)row * k, k, done);
  };
  const auto rows_of = [&](auto num_rows, auto num_tiles) {
    constexpr int R = decltype(num_rows)::value, C = decltype(num_tiles)::value;
    for (; row + R <= rows; row += R) {
      int tile = first;
      for (; tile + C <= last; tile += C) block(num_rows, num_tiles, tile);
      for (; tile < last; ++tile) block(num_rows, Count<1>{}, tile);
    }
  };
  rows_of(Count<8>{}, Count<1>{});
  rows_of(Count<4>{}, Count<2>{});
  rows_of(Count<2>{}, Count<4>{});
  rows_of(Count<1>{}, Count<4>{});
}

// Fills a layer; output row i comes from `source(i)`: bf16 [k], or null for the padding.
template <typename Source>
void pack(Team& team, const Linear& linear, Source source) {
  std::atomic<int> next{0};
  team.run([&](int) {
    for (int tile; (tile = next.fetch_add(1)) < linear.tiles();) {
      const auto row_of = [&](int column) { return source(tile * kTileColumns + column); };
      if (linear.is_int8)
        pack_int8_tile((int8_t*)linear.tile(tile), linear.k, row_of);
      else
        pack_bf16_tile((bf16*)linear.tile(tile), linear.k, row_of);
    }
  });
}

// Output row `index` of a layer as float32 [k], as it is computed with.
inline void unpack_row(const Linear& linear, int index, float* to) {
  const char* tile = linear.tile(index / kTileColumns);
  const int column = index % kTileColumns;
  if (linear.is_int8)
    unpack_int8_row((const int8_t*)tile, column, linear.k, to);
  else
    unpack_bf16_row((const bf16*)tile, column, linear.k, to);
}

}  // namespace native
