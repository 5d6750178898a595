// Attention of query rows to the paged KV cache of one sequence.
//
// Layouts (a "pair" is two bf16 that VDPBF16PS multiplies and adds in one lane):
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
  const bf16* query[kRows];
  int position[kRows];
  bf16* to[kRows];
};

// Scratch of one thread.
struct AttentionScratch {
  alignas(64) float scores[kRows][kSpan];
  alignas(64) bf16 high[kRows][kSpan], low[kRows][kSpan];  // probabilities, high + low = float32
  std::vector<float> sums;                                 // [kRows][head_dim]
};

template <int R>
inline void score_block(const bf16* keys, const AttentionRows& rows, int first, int head_dim,
                        float (*scores)[kSpan], int column) {
  __m512 sums[R];
  for (int r = 0; r < R; ++r) sums[r] = _mm512_setzero_ps();
  for (int pair = 0; pair < head_dim / 2; ++pair) {
    const __m512bh key = load_pairs(keys + pair * 2 * kBlock);
    for (int r = 0; r < R; ++r)
      sums[r] = _mm512_dpbf16_ps(sums[r], key, broadcast_pair(rows.query[first + r] + 2 * pair));
  }
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(&scores[first + r][column], sums[r]);
}

// sums[R][V registers of dimensions] += probabilities x values of one block.
template <int R, int V>
inline void add_values(const bf16* values, int head_dim, int dimension, int column, int first,
                       AttentionScratch& scratch) {
  __m512 sums[R][V];
  float* at = &scratch.sums[(int64_t)first * head_dim + dimension];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sums[r][v] = _mm512_loadu_ps(at + r * head_dim + v * kLanes);
  for (int pair = 0; pair < kBlock / 2; ++pair) {
    const bf16* row = values + ((int64_t)pair * head_dim + dimension) * 2;
    __m512bh value[V];
    for (int v = 0; v < V; ++v) value[v] = load_pairs(row + v * 2 * kLanes);
    for (int r = 0; r < R; ++r) {
      const __m512bh high = broadcast_pair(&scratch.high[first + r][column + 2 * pair]);
      const __m512bh low = broadcast_pair(&scratch.low[first + r][column + 2 * pair]);
      for (int v = 0; v < V; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value[v], high);
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], value[v], low);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(at + r * head_dim + v * kLanes, sums[r][v]);
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
      __m512 top = _mm512_set1_ps(maximum[r]);
      for (int c = 0; c < num_columns; c += kLanes)
        top = _mm512_max_ps(top, _mm512_load_ps(scores + c));
      const float new_maximum = _mm512_reduce_max_ps(top);
      if (new_maximum == -INFINITY) {  // nothing of this span is visible to this row
        std::memset(scratch.high[r], 0, num_columns * sizeof(bf16));
        std::memset(scratch.low[r], 0, num_columns * sizeof(bf16));
        continue;
      }
      const float shrink = std::exp(maximum[r] - new_maximum);
      const __m512 shift = _mm512_set1_ps(new_maximum);
      __m512 sum = _mm512_setzero_ps();
      for (int c = 0; c < num_columns; c += kLanes) {
        const __m512 score = _mm512_load_ps(scores + c);
        const __mmask16 visible = _mm512_cmp_ps_mask(score, _mm512_set1_ps(-INFINITY), _CMP_NEQ_OQ);
        const __m512 p = _mm512_maskz_mov_ps(visible, exp_ps(_mm512_sub_ps(score, shift)));
        sum = _mm512_add_ps(sum, p);
        store_bf16(scratch.high[r] + c, p);
        store_bf16(scratch.low[r] + c, _mm512_sub_ps(p, load_bf16(scratch.high[r] + c)));
      }
      total[r] = total[r] * shrink + _mm512_reduce_add_ps(sum);
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
    const __m512 scale = _mm512_set1_ps(1.0f / total[r]);
    for (int d = 0; d < head_dim; d += kLanes)
      store_bf16(rows.to[r] + d,
                 _mm512_mul_ps(_mm512_loadu_ps(&scratch.sums[r * head_dim + d]), scale));
  }
}

}  // namespace native
