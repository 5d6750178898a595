// Attention of query rows to the paged KV cache of one sequence.
//
// Layouts:
//   keys      [block][head][D/2][16][2]      16 positions side by side, dimensions in pairs
//   values    [block][head][16/2][D][2]      dimensions side by side, positions in pairs

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "model.h"

namespace native {

constexpr int kRows = 8;    // query rows that attend together
constexpr int kSpan = 512;  // positions whose scores are kept at once
constexpr int kSpanBlocks = kSpan / kBlock;

// Up to kRows query rows (heads of a group, or of several tokens) against one KV head.
struct AttentionRows {
  int count = 0;
  const Activation* query[kRows];
  int position[kRows];
  Activation* to[kRows];
};

// Scratch of one thread.
struct AttentionScratch {
  alignas(64) float scores[kRows][kSpan];
  Factors<kSpan> probabilities[kRows];
  std::vector<float> sums;  // [kRows][head_dim]
};

template <int R>
inline void score_block(const bf16* keys, const AttentionRows& rows, int first, int head_dim,
                        float (*scores)[kSpan], int column) {
  Floats sums[R];
  for (int r = 0; r < R; ++r) sums[r] = zeros();
  for (int pair = 0; pair < head_dim / 2; ++pair) {
    const Pairs key = load_pairs(keys + pair * 2 * kBlock);
    for (int r = 0; r < R; ++r)
      sums[r] = add_pairs(sums[r], key, rows.query[first + r] + 2 * pair);
  }
  for (int r = 0; r < R; ++r) store(&scores[first + r][column], sums[r]);
}

// sums[R][V registers of dimensions] += probabilities x values of one block.
template <int R, int V>
inline void add_values(const bf16* values, int head_dim, int dimension, int column, int first,
                       AttentionScratch& scratch) {
  Floats sums[R][V];
  float* at = &scratch.sums[(int64_t)first * head_dim + dimension];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sums[r][v] = load(at + r * head_dim + v * kLanes);
  for (int pair = 0; pair < kBlock / 2; ++pair) {
    const bf16* row = values + ((int64_t)pair * head_dim + dimension) * 2;
    Pairs value[V];
    for (int v = 0; v < V; ++v) value[v] = load_pairs(row + v * 2 * kLanes);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        sums[r][v] = scratch.probabilities[first + r].add_pairs(sums[r][v], value[v],
                                                                column + 2 * pair);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(at + r * head_dim + v * kLanes, sums[r][v]);
}

// Calls `work(Count<R>, first)` until all rows are covered, four at a time.
template <typename Work>
inline void by_fours(int rows, Work work) {
  int first = 0;
  for (; first + 4 <= rows; first += 4) work(Count<4>{}, first);
  switch (rows - first) {
    case 3: work(Count<3>{}, first); break;
    case 2: work(Count<2>{}, first); break;
    case 1: work(Count<1>{}, first); break;
  }
}

// Attention of some rows to the positions of one sequence they may see (online softmax over
// spans of kSpan positions; Milakov & Gimelshein 2018, Dao et al. 2022).
inline void attend(const Decoder& model, const Layer& layer, int head, const int32_t* table,
                   AttentionRows& rows, AttentionScratch& scratch) {
  const int head_dim = model.shape.head_dim, window = layer.window;
  float maximum[kRows], total[kRows];
  int first_position = rows.position[0], last_position = rows.position[0];
  for (int r = 0; r < rows.count; ++r) {
    first_position = std::min(first_position, rows.position[r]);
    last_position = std::max(last_position, rows.position[r]);
    maximum[r] = -INFINITY;
    total[r] = 0;
  }
  std::fill(scratch.sums.begin(), scratch.sums.end(), 0.0f);
  // Spans begin at multiples of kSpan whatever the window hides, so that sums are formed alike
  // in every batch; blocks before `first` may be gone.
  const int first = window ? std::max(0, first_position - window + 1) / kBlock : 0;
  const int last = last_position / kBlock;
  for (int span = first / kSpanBlocks * kSpanBlocks; span <= last; span += kSpanBlocks) {
    const int begin = std::max(first, span), end = std::min(last + 1, span + kSpanBlocks);
    for (int block = begin; block < end; ++block) {
      const bf16* keys = layer.keys + model.offset(table[block], head);
      const int column = (block - span) * kBlock;
      by_fours(rows.count, [&](auto num_rows, int r) {
        score_block<decltype(num_rows)::value>(keys, rows, r, head_dim, scratch.scores, column);
      });
    }
    const int num_columns = (end - span) * kBlock;
    for (int r = 0; r < rows.count; ++r) {
      float* scores = scratch.scores[r];
      const int base = span * kBlock;
      const int newest = rows.position[r] - base;  // columns beyond it are the future
      const int oldest = window ? rows.position[r] - window + 1 - base : 0;
      for (int c = std::max(0, newest + 1); c < num_columns; ++c) scores[c] = -INFINITY;
      const int hidden = std::max(oldest, (begin - span) * kBlock);
      for (int c = 0; c < std::min(hidden, num_columns); ++c) scores[c] = -INFINITY;
      Floats top = all(maximum[r]);
      for (int c = 0; c < num_columns; c += kLanes) top = larger(top, load(scores + c));
      const float new_maximum = largest_of(top);
      if (new_maximum == -INFINITY) {  // nothing of this span is visible to this row
        for (int c = 0; c < num_columns; c += kLanes) scratch.probabilities[r].set(c, zeros());
        continue;
      }
      const float shrink = std::exp(maximum[r] - new_maximum);
      const Floats shift = all(new_maximum), nothing = all(-INFINITY);
      Floats sum = zeros();
      for (int c = 0; c < num_columns; c += kLanes) {
        const Floats score = load(scores + c);
        const Floats p = where_greater(score, nothing, exp(score - shift));
        sum = sum + p;
        scratch.probabilities[r].set(c, p);
      }
      total[r] = total[r] * shrink + sum_of(sum);
      maximum[r] = new_maximum;
      if (shrink != 1.0f)
        for (int d = 0; d < head_dim; ++d) scratch.sums[r * head_dim + d] *= shrink;
    }
    const int width = head_dim % 64 == 0 ? 64 : kLanes;
    for (int dimension = 0; dimension < head_dim; dimension += width) {
      for (int block = begin; block < end; ++block) {
        const bf16* values = layer.values + model.offset(table[block], head);
        const int column = (block - span) * kBlock;
        by_fours(rows.count, [&](auto num_rows, int r) {
          constexpr int R = decltype(num_rows)::value;
          if (width == 64)
            add_values<R, 4>(values, head_dim, dimension, column, r, scratch);
          else
            add_values<R, 1>(values, head_dim, dimension, column, r, scratch);
        });
      }
    }
  }
  for (int r = 0; r < rows.count; ++r) {
    const Floats scale = all(1.0f / total[r]);
    for (int d = 0; d < head_dim; d += kLanes)
      store(rows.to[r] + d, load(&scratch.sums[r * head_dim + d]) * scale);
  }
}

}  // namespace native
