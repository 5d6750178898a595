// A register tile of a matrix product with weights in codes of 4 or 8 bits: AWQ and GPTQ.
//
// A weight is scale * (code - zero); scale and zero belong to a group of inputs of one output row.
// Activations are rounded to 16 bits as for int8 weights (int8_product.h), and a group is summed
// exactly in int32: codes times activations, less the zero times the sum of the activations;
// 255 * 32767 * 128 < 2^31, so a group has at most 128 inputs. Groups are added in float32, in order.
//
// Packed weights are [n/32] tiles of codes, int32 [k/8][32] or, with 8 bits, [k/4][32]: inputs of one
// output row, the first of every pair in the low half, the second in the high; then scales, float32
// [groups][32]; then zeros, uint8 [groups][32].

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "int8_product.h"

namespace native {

constexpr int kCodesPrefetch = 3 << 10;  // bytes

// Where the parts of a tile stand.
struct CodesTile {
  int k, group_size, bits;

  int groups() const { return k / group_size; }
  int word_inputs() const { return 32 / bits; }
  // Where code `place` of an int32 begins.
  int shift(int place) const { return place / 2 * bits + place % 2 * 16; }
  int64_t scales() const { return (int64_t)k / word_inputs() * kTileColumns * sizeof(int32_t); }
  int64_t zeros() const { return scales() + (int64_t)groups() * kTileColumns * sizeof(float); }
  int64_t bytes() const { return (zeros() + groups() * kTileColumns + 63) / 64 * 64; }
};

// The sums of a group of rows' activations, x [k/2][rows][2], by groups of inputs: to [groups][rows].
inline void sum_groups(const int16_t* x, int rows, int groups, int group_size, int32_t* to) {
  for (int group = 0; group < groups; ++group, to += rows) {
    std::memset(to, 0, rows * sizeof(int32_t));
    for (int pair = 0; pair < group_size / 2; ++pair)
      for (int r = 0; r < rows; ++r, x += 2) to[r] += x[0] + x[1];
  }
}

// A group of `R` rows, x [k/2][R][2] with `sums_of_x` [groups][R], times `T` weight tiles;
// to [2 T][R] are the sums of each half tile, not scaled by the rows' scales yet.
template <int Bits, int R, int T>
inline void multiply_codes_tiles(const char* weights, const CodesTile& tile, const int16_t* x,
                                 const int32_t* sums_of_x, Floats* to) {
  constexpr int C = 2 * T, kPairs = 16 / Bits;
  const int64_t tile_bytes = tile.bytes();
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) to[c * R + r] = zeros();
  const char* codes = weights;
  for (int group = 0; group < tile.groups(); ++group) {
    Ints sums[C][R];
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) sums[c][r] = no_ints();
    for (int word = 0; word < tile.group_size / (2 * kPairs); ++word) {
      Ints words[C];
      for (int c = 0; c < C; ++c) {
        const char* at = codes + c / 2 * tile_bytes + c % 2 * kLanes * sizeof(int32_t);
        words[c] = load_ints((const int32_t*)at);
        prefetch(at + kCodesPrefetch);
      }
      codes += kTileColumns * sizeof(int32_t);
      for (int pair = 0; pair < kPairs; ++pair, x += 2 * R) {
        Shorts w[C];
        for (int c = 0; c < C; ++c) {
          w[c] = low_codes<Bits>(words[c]);
          words[c] = next_codes<Bits>(words[c]);
        }
        for (int r = 0; r < R; ++r) {
          const Shorts factors = all_pairs(x + 2 * r);
          for (int c = 0; c < C; ++c) sums[c][r] = add_products(sums[c][r], w[c], factors);
        }
      }
    }
    for (int c = 0; c < C; ++c) {
      const char* at = weights + c / 2 * tile_bytes;
      const int column = group * kTileColumns + c % 2 * kLanes;
      const Floats scale = load((const float*)(at + tile.scales()) + column);
      const Ints zero = load_codes((const uint8_t*)(at + tile.zeros()) + column);
      for (int r = 0; r < R; ++r) {
        const Ints centred = less_product(sums[c][r], zero, sums_of_x[group * R + r]);
        to[c * R + r] = add_product(to[c * R + r], to_floats(centred), scale);
      }
    }
  }
}

// The same for `rows` and `tiles`; outside of its callers, so that it is compiled once.
__attribute__((noinline)) inline void multiply_codes(const char* weights, const CodesTile& tile,
                                                     const int16_t* x, const int32_t* sums_of_x,
                                                     int rows, int tiles, Floats* to) {
  with_counts(rows, tiles, [&](auto r, auto t) {
    if (tile.bits == 4)
      multiply_codes_tiles<4, r(), t()>(weights, tile, x, sums_of_x, to);
    else
      multiply_codes_tiles<8, r(), t()>(weights, tile, x, sums_of_x, to);
  });
}

// x [row groups][padded k/2][rows of the group][2], its sums [row groups][groups][rows of the
// group], times the tiles first .. last - 1.
template <typename Finish>
inline void multiply_codes(const char* weights, const CodesTile& layout, const int16_t* x,
                           const int32_t* sums_of_x, const float* x_scales, int num_rows, int first,
                           int last, Finish finish) {
  const auto multiply = [&](int row, int rows, int tile, int tiles, Floats* sums) {
    multiply_codes(weights + tile * layout.bytes(), layout, x + (int64_t)row * padded(layout.k),
                   sums_of_x + (int64_t)row * layout.groups(), rows, tiles, sums);
  };
  by_groups(num_rows, first, last, multiply, [&](int row, int tile, Floats low, Floats high) {
    const Floats scale = all(x_scales[row]);
    finish(row, tile, low * scale, high * scale);
  });
}

// How a checkpoint packs codes: an int32 holds some inputs of one output, or some outputs of one
// input, and a code begins at bit `shifts[its place among them]`. Must match `_CodesFormat` in
// runtime/native_library.py.
struct CodesFormat {
  int32_t bits, inputs_per_word, outputs_per_word;
  int32_t shifts[8];
};

// A layer as a checkpoint holds it: words [k / inputs_per_word][n / outputs_per_word],
// scales [groups][n], zeros [groups][n]. Must match `_CodesPart` in runtime/native_library.py.
struct CodesPart {
  const int32_t* words;
  const float* scales;
  const uint8_t* zeros;
  int32_t n;
};

// The codes of one output, input after input.
class CodesOfOutput {
 public:
  CodesOfOutput(const CodesFormat& format, const CodesPart& part, int output)
      : word_(part.words + output / format.outputs_per_word),
        width_(part.n / format.outputs_per_word),
        shifts_(format.shifts + output % format.outputs_per_word),
        num_places_(format.inputs_per_word), mask_((1u << format.bits) - 1) {}

  uint32_t next() {
    const uint32_t code = (uint32_t)*word_ >> shifts_[place_] & mask_;
    if (++place_ == num_places_) {
      place_ = 0;
      word_ += width_;
    }
    return code;
  }

 private:
  const int32_t* word_;
  const int64_t width_;
  const int32_t* shifts_;
  const int num_places_;
  const uint32_t mask_;
  int place_ = 0;
};

// One output row of a part; no part is a row of zeros.
struct CodesRow {
  const CodesPart* part;
  int output;
};

// Packs the rows that `source(column)` gives.
template <typename Source>
void pack_codes_tile(char* weights, const CodesTile& tile, const CodesFormat& format, Source source) {
  auto* codes = (int32_t*)weights;
  auto* scales = (float*)(weights + tile.scales());
  auto* zeros = (uint8_t*)(weights + tile.zeros());
  std::vector<CodesOfOutput> sources;  // what is missing is at the end, and fresh memory is zero
  for (int column = 0; column < kTileColumns; ++column) {
    const CodesRow row = source(column);
    if (row.part == nullptr) break;
    sources.emplace_back(format, *row.part, row.output);
    for (int group = 0; group < tile.groups(); ++group) {
      const int64_t from = (int64_t)group * row.part->n + row.output;
      scales[group * kTileColumns + column] = row.part->scales[from];
      zeros[group * kTileColumns + column] = row.part->zeros[from];
    }
  }
  // Neighbouring outputs share words, and lines of the cache.
  for (int word = 0; word < tile.k / tile.word_inputs(); ++word, codes += kTileColumns)
    for (size_t column = 0; column < sources.size(); ++column) {
      uint32_t packed = 0;
      for (int i = 0; i < tile.word_inputs(); ++i)
        packed |= sources[column].next() << tile.shift(i);
      codes[column] = (int32_t)packed;
    }
}

// Row `column` of a tile, as float32 [k].
inline void unpack_codes_row(const char* weights, const CodesTile& tile, int column, float* to) {
  const auto* codes = (const int32_t*)weights;
  const auto* scales = (const float*)(weights + tile.scales());
  const auto* zeros = (const uint8_t*)(weights + tile.zeros());
  for (int i = 0; i < tile.k; ++i) {
    const int group = i / tile.group_size;
    const uint32_t word = (uint32_t)codes[i / tile.word_inputs() * kTileColumns + column];
    const int code = word >> tile.shift(i % tile.word_inputs()) & ((1 << tile.bits) - 1);
    to[i] = scales[group * kTileColumns + column] * (code - zeros[group * kTileColumns + column]);
  }
}

}  // namespace native
