// What a loaded model is: sizes, layers, packed weights, the KV cache, a step's buffers.

#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "product.h"

namespace native {

constexpr int kBlock = 16;  // positions of one KV block

// Must match `NativeShape` in runtime/native.py.
struct Shape {
  int32_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab, max_positions, threads;
  Format format;       // of the linear layers; with codes the head is in bf16
  int32_t bits, group_size;  // of codes; so many inputs share a scale
  float norm_eps, attention_scale;
};

// Must match `NativeSequence` in runtime/native.py.
struct Sequence {
  int32_t first_token;  // index of its first token in the batch
  int32_t num_tokens;
  int32_t start;        // position of the first token
  int32_t table_length;
  const int32_t* block_tables;  // [groups][table_length]
};

struct Layer {
  Linear qkv, out, gate_up, down;
  std::vector<float> attention_norm, mlp_norm, query_norm, key_norm;
  int group = 0;   // which of a sequence's block tables this layer uses
  int window = 0;  // 0: every earlier position
  bf16 *keys = nullptr, *values = nullptr;
};

struct Decoder {
  Shape shape;
  std::vector<Layer> layers;
  Linear head;
  std::vector<float> final_norm;
  std::vector<bf16> embedding;
  std::vector<float> cosines, sines;  // [max_positions][head_dim / 2]
  std::vector<std::pair<void*, size_t>> memory;
  std::unique_ptr<Team> team;

  // One step's activations, grown when a larger batch comes.
  std::vector<float> residual, projected;
  std::vector<Activation> queries;
  Inputs normed, attended, gated, selected;
  std::vector<std::atomic<int>> counters;

  ~Decoder() {
    team.reset();
    for (auto& [address, size] : memory) munmap(address, size);
  }

  void* take(size_t num_bytes) {
    void* address = allocate(num_bytes);
    if (address) memory.emplace_back(address, num_bytes);
    return address;
  }

  int64_t block_size() const { return (int64_t)shape.kv_heads * shape.head_dim * kBlock; }
  int64_t offset(int block, int head) const {
    return block * block_size() + (int64_t)head * shape.head_dim * kBlock;
  }
};

}  // namespace native
