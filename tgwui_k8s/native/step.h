// One step: every token of every sequence of the batch through all layers.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "attention.h"
#include "model.h"

namespace native {

inline void rms_norm(const float* x, const float* weight, int size, float eps, Activation* to) {
  Floats sum = zeros();
  for (int i = 0; i < size; i += kLanes) sum = add_product(sum, load(x + i), load(x + i));
  const Floats scale = all(1.0f / std::sqrt(sum_of(sum) / size + eps));
  for (int i = 0; i < size; i += kLanes) store(to + i, load(x + i) * scale * load(weight + i));
}

inline void norm_head(float* head, const std::vector<float>& weight, float eps) {
  if (weight.empty()) return;
  const int size = (int)weight.size();
  float sum = 0;
  for (int i = 0; i < size; ++i) sum += head[i] * head[i];
  const float scale = 1.0f / std::sqrt(sum / size + eps);
  for (int i = 0; i < size; ++i) head[i] *= scale * weight[i];
}

inline void rotate(float* head, const float* cosine, const float* sine, int head_dim) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; i += kLanes) {
    const int count = half - i;
    const Floats a = load_some(head + i, count), b = load_some(head + half + i, count);
    const Floats c = load_some(cosine + i, count), s = load_some(sine + i, count);
    store_some(head + i, product_minus(a, c, b * s), count);
    store_some(head + half + i, add_product(a * s, b, c), count);
  }
}

class Step {
 public:
  Step(Decoder& model, const int32_t* token_ids, int num_tokens, const Sequence* sequences,
       int num_sequences, const int32_t* logit_tokens, int num_logits, float* logits)
      : m(model), shape(model.shape), token_ids_(token_ids), num_tokens_(num_tokens),
        sequences_(sequences), num_sequences_(num_sequences), logit_tokens_(logit_tokens),
        num_logits_(num_logits), logits_(logits) {
    const int64_t tokens = num_tokens;
    grow(m.residual, tokens * shape.hidden);
    grow(m.projected, tokens * qkv_size());
    grow(m.queries, tokens * shape.heads * shape.head_dim);
    for (Inputs* inputs : {&m.normed, &m.attended, &m.gated}) inputs->resize(num_tokens);
    m.selected.resize(num_logits);
    for (auto& counter : m.counters) counter.store(0, std::memory_order_relaxed);
    tokens_.resize(num_tokens);
    for (int s = 0; s < num_sequences; ++s)
      for (int i = 0; i < sequences[s].num_tokens; ++i)
        tokens_[sequences[s].first_token + i] = {s, sequences[s].start + i};
    plan_attention();
  }

  void run() {
    m.team->run([this](int) { work(); });
  }

 private:
  struct Token { int sequence, position; };
  struct AttentionTask { int sequence, first, count; };  // rows first.. of the sequence's rows

  int qkv_size() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_dim; }
  int group() const { return shape.heads / shape.kv_heads; }
  static const int32_t* table(const Sequence& sequence, const Layer& layer) {
    return sequence.block_tables + (int64_t)layer.group * sequence.table_length;
  }

  // A task is a run of rows (token, head of the group) that share one sweep over keys and values.
  void plan_attention() {
    for (int s = 0; s < num_sequences_; ++s) {
      const int rows = sequences_[s].num_tokens * group();
      for (int first = 0; first < rows; first += kRows)
        tasks_.push_back({s, first, std::min(kRows, rows - first)});
    }
  }

  // Hands out 0 .. count - 1 in runs of `chunk` to whichever thread asks; one counter per stage.
  template <typename Work>
  void share(int stage, int count, int chunk, Work work) {
    std::atomic<int>& next = m.counters[stage];
    while (true) {
      const int first = next.fetch_add(chunk, std::memory_order_relaxed);
      if (first >= count) return;
      work(first, std::min(count, first + chunk));
    }
  }

  template <typename Work>
  void share_each(int stage, int count, Work work) {
    share(stage, count, 1, [&](int i, int) { work(i); });
  }

  // A few tiles at a time, so that threads do not fight over cache lines, in equal shares.
  int tile_chunk(const Linear& linear) const {
    const int shares = (linear.tiles() + 4 * m.team->size() - 1) / (4 * m.team->size());
    return (linear.tiles() + shares * m.team->size() - 1) / (shares * m.team->size());
  }

  void work() {
    AttentionScratch scratch;
    scratch.sums.resize(kRows * shape.head_dim);
    int stage = 0;
    share_each(stage++, num_tokens_, [this](int t) { embed(t); });
    m.team->meet();
    for (int l = 0; l < shape.layers; ++l) {
      const Layer& layer = m.layers[l];
      share_each(stage++, num_tokens_, [&](int t) { norm(t, layer.attention_norm); });
      m.team->meet();
      prepare(m.normed, stage++);
      project(layer.qkv, stage++);
      m.team->meet();
      share_each(stage++, num_tokens_, [&](int t) { place(layer, t); });
      m.team->meet();
      share_each(stage++, (int)tasks_.size() * shape.kv_heads,
                 [&](int task) { attend_rows(layer, task, scratch); });
      m.team->meet();
      prepare(m.attended, stage++);
      add_product(layer.out, m.attended, stage++);
      m.team->meet();
      share_each(stage++, num_tokens_, [&](int t) { norm(t, layer.mlp_norm); });
      m.team->meet();
      prepare(m.normed, stage++);
      gate(layer.gate_up, stage++);
      m.team->meet();
      prepare(m.gated, stage++);
      add_product(layer.down, m.gated, stage++);
      m.team->meet();
    }
    share_each(stage++, num_logits_, [this](int i) { select(i); });
    m.team->meet();
    prepare(m.selected, stage++);
    predict(stage++);
  }

  void embed(int token) {
    const int id = token_ids_[token];
    float* to = m.residual.data() + (int64_t)token * shape.hidden;
    if (m.embedding.empty()) return unpack_row(m.head, id, to);  // tied: the head holds it
    const bf16* from = m.embedding.data() + (int64_t)id * shape.hidden;
    for (int i = 0; i < shape.hidden; i += kLanes) store(to + i, load(from + i));
  }

  void norm(int token, const std::vector<float>& weight) {
    rms_norm(m.residual.data() + (int64_t)token * shape.hidden, weight.data(), shape.hidden,
             shape.norm_eps, m.normed.row(token));
  }

  // Makes complete rows ready for a product.
  void prepare(Inputs& inputs, int stage) {
    const int num_groups = inputs.num_groups_to_prepare();
    if (num_groups == 0) return;
    share_each(stage, num_groups, [&](int group) { inputs.prepare(group); });
    m.team->meet();
  }

  // Runs `finish(row, tile, low, high)` over x [rows] times the whole layer, shared by the team.
  template <typename Finish>
  void product(const Linear& linear, const Inputs& x, int rows, int stage, Finish finish) {
    share(stage, linear.tiles(), tile_chunk(linear),
          [&](int first, int last) { multiply(linear, x, rows, first, last, finish); });
  }

  void project(const Linear& linear, int stage) {
    product(linear, m.normed, num_tokens_, stage,
            [&](int row, int tile, Floats low, Floats high) {
              store_columns(m.projected.data() + (int64_t)row * linear.n, linear.n,
                            tile * kTileColumns, low, high, linear.bias);
            });
  }

  static void store_columns(float* to, int n, int column, Floats low, Floats high,
                            const std::vector<float>& bias) {
    const auto store = [&](int first, Floats sums) {
      if (first >= n) return;
      if (!bias.empty()) sums = sums + load_some(&bias[first], n - first);
      store_some(to + first, sums, n - first);
    };
    store(column, low);
    store(column + kLanes, high);
  }

  // Norms and rotates queries and keys of a token, and writes keys and values into their block.
  void place(const Layer& layer, int token) {
    const int d = shape.head_dim, position = tokens_[token].position;
    float* row = m.projected.data() + (int64_t)token * qkv_size();
    const float* cosine = &m.cosines[(int64_t)position * (d / 2)];
    const float* sine = &m.sines[(int64_t)position * (d / 2)];
    const Floats scale = all(shape.attention_scale);
    for (int h = 0; h < shape.heads; ++h) {
      float* head = row + h * d;
      norm_head(head, layer.query_norm, shape.norm_eps);
      rotate(head, cosine, sine, d);
      Activation* to = m.queries.data() + ((int64_t)token * shape.heads + h) * d;
      for (int i = 0; i < d; i += kLanes) store(to + i, load(head + i) * scale);
    }
    const Sequence& sequence = sequences_[tokens_[token].sequence];
    const int block = table(sequence, layer)[position / kBlock], slot = position % kBlock;
    for (int h = 0; h < shape.kv_heads; ++h) {
      float* key = row + (shape.heads + h) * d;
      const float* value = row + (shape.heads + shape.kv_heads + h) * d;
      norm_head(key, layer.key_norm, shape.norm_eps);
      rotate(key, cosine, sine, d);
      bf16* keys = layer.keys + m.offset(block, h) + 2 * slot;
      bf16* values = layer.values + m.offset(block, h) + (int64_t)(slot / 2) * d * 2 + slot % 2;
      for (int i = 0; i < d; i += 2) {
        keys[i * kBlock] = float_to_bf16(key[i]);
        keys[i * kBlock + 1] = float_to_bf16(key[i + 1]);
      }
      for (int i = 0; i < d; ++i) values[2 * i] = float_to_bf16(value[i]);
    }
    const bool is_last = position == sequence.start + sequence.num_tokens - 1;
    if (is_last && position - slot >= sequence.start) clear_behind(layer, block, slot);
  }

  // Whoever had a block before may have left NaN in it, which a weight of zero does not hide: done
  // once, in the step that begins the block.
  void clear_behind(const Layer& layer, int block, int last_slot) {
    const int d = shape.head_dim;
    for (int h = 0; h < shape.kv_heads; ++h)
      for (int slot = last_slot + 1; slot < kBlock; ++slot) {
        bf16* values = layer.values + m.offset(block, h) + (int64_t)(slot / 2) * d * 2 + slot % 2;
        for (int i = 0; i < d; ++i) values[2 * i] = 0;
      }
  }

  void attend_rows(const Layer& layer, int index, AttentionScratch& scratch) {
    const AttentionTask& task = tasks_[index / shape.kv_heads];
    const int head = index % shape.kv_heads, d = shape.head_dim;
    const Sequence& sequence = sequences_[task.sequence];
    AttentionRows rows;
    rows.count = task.count;
    for (int r = 0; r < task.count; ++r) {
      const int token = sequence.first_token + (task.first + r) / group();
      const int64_t offset =
          ((int64_t)token * shape.heads + head * group() + (task.first + r) % group()) * d;
      rows.query[r] = m.queries.data() + offset;
      rows.to[r] = m.attended.row(0) + offset;
      rows.position[r] = tokens_[token].position;
    }
    attend(m, layer, head, table(sequence, layer), rows, scratch);
  }

  // residual += x times the linear layer.
  void add_product(const Linear& linear, const Inputs& x, int stage) {
    product(linear, x, num_tokens_, stage, [&](int row, int tile, Floats low, Floats high) {
      const auto add = [&](int first, Floats sums) {
        if (first >= linear.n) return;
        float* to = m.residual.data() + (int64_t)row * linear.n + first;
        store(to, load(to) + sums);
      };
      add(tile * kTileColumns, low);
      add(tile * kTileColumns + kLanes, high);
    });
  }

  void gate(const Linear& linear, int stage) {
    product(linear, m.normed, num_tokens_, stage,
            [&](int row, int tile, Floats gate, Floats up) {
              store(m.gated.row(row) + tile * kLanes, silu(gate) * up);
            });
  }

  void select(int index) {
    rms_norm(m.residual.data() + (int64_t)logit_tokens_[index] * shape.hidden, m.final_norm.data(),
             shape.hidden, shape.norm_eps, m.selected.row(index));
  }

  void predict(int stage) {
    product(m.head, m.selected, num_logits_, stage,
            [&](int row, int tile, Floats low, Floats high) {
              store_columns(logits_ + (int64_t)row * shape.vocab, shape.vocab, tile * kTileColumns,
                            low, high, m.head.bias);
            });
  }

  Decoder& m;
  const Shape& shape;
  const int32_t* token_ids_;
  const int num_tokens_;
  const Sequence* sequences_;
  const int num_sequences_;
  const int32_t* logit_tokens_;
  const int num_logits_;
  float* logits_;
  std::vector<Token> tokens_;
  std::vector<AttentionTask> tasks_;
};

}  // namespace native
