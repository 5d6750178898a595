// The forward pass of Llama-shaped decoders on CPUs with AVX-512 BF16, over a paged KV cache.
//
// One call computes a whole step: every token of every sequence of the batch, prefill and decode
// alike. Weights are bf16, packed once at load; sums, the residual stream, norms, softmax and
// logits are float32. Plain C interface, no torch: `tgwui_k8s/runtime/native.py` binds it.
//
// Layouts (one "pair" is two bf16 that VDPBF16PS multiplies and adds in one lane):
//   weights   [N/32][K/2][32][2]             32 output rows side by side, input in pairs
//   keys      [block][head][D/2][16][2]      16 positions side by side, dimensions in pairs
//   values    [block][head][16/2][D][2]      dimensions side by side, positions in pairs
// The gate and up projections are interleaved by 16 rows, so that one tile holds both and
// SiLU(gate) * up is formed in registers.

#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

using bf16 = uint16_t;

constexpr int kLanes = 16;        // float32 lanes of a register
constexpr int kTileColumns = 32;  // output rows of one packed weight tile
constexpr int kBlock = 16;        // positions of one KV block
constexpr int kRows = 8;          // query rows that attend together
constexpr int kPrefetch = 48 * kTileColumns;  // how far ahead of their use weights are fetched
constexpr int kSpan = 512;        // positions whose scores are kept at once
constexpr int kSpanBlocks = kSpan / kBlock;
constexpr int kSpins = 4000;      // before a waiting thread offers its core to others

// ---------------------------------------------------------------------------------- small things

template <int N>
using Count = std::integral_constant<int, N>;

inline __m512bh as_bh(__m512i bits) { return (__m512bh)bits; }

inline __m512bh load_pairs(const bf16* from) { return as_bh(_mm512_loadu_si512(from)); }

inline __m512bh broadcast_pair(const bf16* pair) {
  int bits;
  std::memcpy(&bits, pair, 4);
  return as_bh(_mm512_set1_epi32(bits));
}

inline __m512 load_bf16(const bf16* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store_bf16(bf16* to, __m512 values) {
  const __m256bh narrow = _mm512_cvtneps_pbh(values);
  _mm256_storeu_si256((__m256i*)to, (__m256i)narrow);
}

inline float bf16_to_float(bf16 value) {
  const uint32_t bits = (uint32_t)value << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline bf16 float_to_bf16(float value) {  // round to nearest even, as the instruction does
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bf16)((bits >> 16) | 0x40);
  bits += 0x7fff + ((bits >> 16) & 1);
  return (bf16)(bits >> 16);
}

// e^x to about 1e-7 relative (range reduction to 2^n * e^r, Taylor to degree 6).
inline __m512 exp_ps(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.3f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

inline __m512 silu_ps(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// Memory on huge pages: weights and KV cache are read from end to end.
void* allocate(size_t num_bytes) {
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, num_bytes, MADV_HUGEPAGE);
  return memory;
}

// ---------------------------------------------------------------------------------------- threads

// A team that runs one function on all members. Between calls the helpers sleep; within one,
// `meet` is a spinning barrier: stages of a forward pass last microseconds.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int member = 1; member < size; ++member)
      threads_.emplace_back([this, member] { serve(member); });
  }

  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      ++generation_;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  void run(const std::function<void(int)>& work) {
    if (size_ == 1) return work(0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      remaining_.store(size_ - 1, std::memory_order_relaxed);
      ++generation_;
    }
    wake_.notify_all();
    work(0);
    wait_until([this] { return remaining_.load(std::memory_order_acquire) == 0; });
  }

  void meet() {
    if (size_ == 1) return;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      wait_until([this, phase] { return phase_.load(std::memory_order_acquire) != phase; });
    }
  }

 private:
  template <typename Condition>
  static void wait_until(Condition condition) {
    for (int spins = 0; !condition(); ++spins) {
      if (spins < kSpins)
        _mm_pause();
      else
        sched_yield();
    }
  }

  void serve(int member) {
    uint64_t seen = 0;
    while (true) {
      const std::function<void(int)>* work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        if (stopping_) return;
        work = work_;
      }
      (*work)(member);
      remaining_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  uint64_t generation_ = 0;
  bool stopping_ = false;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<int> remaining_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
};

// ---------------------------------------------------------------------------------- matrix product

// A register tile: `R` rows of x times `C` weight tiles. Every sum is formed in the same order
// whatever R and C are, so a row's result does not depend on what else is in the batch, bit for
// bit. `finish(row, tile, low, high)` gets the sums of a tile's columns 0-15 and 16-31.
template <int R, int C, typename Finish>
inline void multiply_tiles(const bf16* weights, int64_t tile_size, const bf16* x, int k,
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

struct Linear {
  int n = 0, k = 0;  // n is padded to whole tiles in the packed weights
  bf16* weights = nullptr;
  std::vector<float> bias;
  int tiles() const { return (n + kTileColumns - 1) / kTileColumns; }
  int64_t tile_size() const { return (int64_t)kTileColumns * k; }
};

// x [rows][k] times the weight tiles first .. last - 1; `finish(row, tile, low, high)`.
template <typename Finish>
void multiply(const Linear& linear, const bf16* x, int rows, int first, int last, Finish finish) {
  const int k = linear.k;
  const int64_t size = linear.tile_size();
  int row = 0;
  const auto rows_of = [&](auto num_rows, auto num_tiles) {
    constexpr int R = decltype(num_rows)::value, C = decltype(num_tiles)::value;
    for (; row + R <= rows; row += R) {
      int tile = first;
      for (; tile + C <= last; tile += C)
        multiply_tiles<R, C>(linear.weights + tile * size, size, x + (int64_t)row * k, k,
                             [&](int r, int c, __m512 a, __m512 b) { finish(row + r, tile + c, a, b); });
      for (; tile < last; ++tile)
        multiply_tiles<R, 1>(linear.weights + tile * size, size, x + (int64_t)row * k, k,
                             [&](int r, int, __m512 a, __m512 b) { finish(row + r, tile, a, b); });
    }
  };
  rows_of(Count<8>{}, Count<1>{});
  rows_of(Count<4>{}, Count<2>{});
  rows_of(Count<2>{}, Count<4>{});
  rows_of(Count<1>{}, Count<4>{});
}

// -------------------------------------------------------------------------------------- the model

struct Layer {
  Linear qkv, out, gate_up, down;
  std::vector<float> attention_norm, mlp_norm, query_norm, key_norm;
  int group = 0;   // which of a sequence's block tables this layer uses
  int window = 0;  // 0: every earlier position
  bf16 *keys = nullptr, *values = nullptr;
};

}  // namespace

extern "C" {

// Must match `NativeShape` in runtime/native.py.
struct Shape {
  int32_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab, max_positions, threads;
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

}  // extern "C"

namespace {

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
  std::vector<bf16> normed, queries, attended, gated, selected;
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

void rms_norm(const float* x, const float* weight, int size, float eps, bf16* to) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < size; i += kLanes) {
    const __m512 v = _mm512_loadu_ps(x + i);
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / size + eps));
  for (int i = 0; i < size; i += kLanes) {
    const __m512 v = _mm512_mul_ps(_mm512_loadu_ps(x + i), scale);
    store_bf16(to + i, _mm512_mul_ps(v, _mm512_loadu_ps(weight + i)));
  }
}

void norm_head(float* head, const std::vector<float>& weight, float eps) {
  if (weight.empty()) return;
  const int size = (int)weight.size();
  float sum = 0;
  for (int i = 0; i < size; ++i) sum += head[i] * head[i];
  const float scale = 1.0f / std::sqrt(sum / size + eps);
  for (int i = 0; i < size; ++i) head[i] *= scale * weight[i];
}

void rotate(float* head, const float* cosine, const float* sine, int head_dim) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; i += kLanes) {
    const __mmask16 mask = half - i >= kLanes ? 0xffff : (1 << (half - i)) - 1;
    const __m512 a = _mm512_maskz_loadu_ps(mask, head + i);
    const __m512 b = _mm512_maskz_loadu_ps(mask, head + half + i);
    const __m512 c = _mm512_maskz_loadu_ps(mask, cosine + i);
    const __m512 s = _mm512_maskz_loadu_ps(mask, sine + i);
    _mm512_mask_storeu_ps(head + i, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
    _mm512_mask_storeu_ps(head + half + i, mask, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
  }
}

// -------------------------------------------------------------------------------------- attention

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
void attend(const Decoder& model, const Layer& layer, int head, const int32_t* table,
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

// ----------------------------------------------------------------------------------------- a step

class Step {
 public:
  Step(Decoder& model, const int32_t* token_ids, int num_tokens, const Sequence* sequences,
       int num_sequences, const int32_t* logit_tokens, int num_logits, float* logits)
      : m(model), shape(model.shape), token_ids_(token_ids), num_tokens_(num_tokens),
        sequences_(sequences), num_sequences_(num_sequences), logit_tokens_(logit_tokens),
        num_logits_(num_logits), logits_(logits) {
    const int64_t tokens = num_tokens;
    grow(m.residual, tokens * shape.hidden);
    grow(m.normed, tokens * shape.hidden);
    grow(m.projected, tokens * qkv_size());
    grow(m.queries, tokens * shape.heads * shape.head_dim);
    grow(m.attended, tokens * shape.heads * shape.head_dim);
    grow(m.gated, tokens * shape.ffn);
    grow(m.selected, (int64_t)num_logits * shape.hidden);
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

  template <typename T>
  static void grow(std::vector<T>& buffer, int64_t size) {
    if ((int64_t)buffer.size() < size) buffer.resize(size);
  }

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

  // Large enough that threads do not fight over cache lines, small enough to balance.
  static int tile_chunk(const Linear& linear) {
    return std::max<int>(4, (1 << 17) / (linear.tile_size() * sizeof(bf16)));
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
      project(layer.qkv, stage++);
      m.team->meet();
      share_each(stage++, num_tokens_, [&](int t) { place(layer, t); });
      m.team->meet();
      share_each(stage++, (int)tasks_.size() * shape.kv_heads,
                 [&](int task) { attend_rows(layer, task, scratch); });
      m.team->meet();
      add_product(layer.out, m.attended.data(), stage++);
      m.team->meet();
      share_each(stage++, num_tokens_, [&](int t) { norm(t, layer.mlp_norm); });
      m.team->meet();
      gate(layer.gate_up, stage++);
      m.team->meet();
      add_product(layer.down, m.gated.data(), stage++);
      m.team->meet();
    }
    share_each(stage++, num_logits_, [this](int i) { select(i); });
    m.team->meet();
    predict(stage++);
  }

  void embed(int token) {
    const int id = token_ids_[token];
    float* to = m.residual.data() + (int64_t)token * shape.hidden;
    if (m.embedding.empty()) {  // tied: the same numbers stand in the packed head
      const bf16* at = m.head.weights + id / kTileColumns * m.head.tile_size() +
                       id % kTileColumns * 2;
      for (int i = 0; i < shape.hidden; i += 2, at += 2 * kTileColumns) {
        to[i] = bf16_to_float(at[0]);
        to[i + 1] = bf16_to_float(at[1]);
      }
    } else {
      const bf16* from = m.embedding.data() + (int64_t)id * shape.hidden;
      for (int i = 0; i < shape.hidden; i += kLanes) _mm512_storeu_ps(to + i, load_bf16(from + i));
    }
  }

  void norm(int token, const std::vector<float>& weight) {
    const int64_t offset = (int64_t)token * shape.hidden;
    rms_norm(m.residual.data() + offset, weight.data(), shape.hidden, shape.norm_eps,
             m.normed.data() + offset);
  }

  // Runs `finish(row, tile, low, high)` over x [rows] times the whole layer, shared by the team.
  template <typename Finish>
  void product(const Linear& linear, const bf16* x, int rows, int stage, Finish finish) {
    share(stage, linear.tiles(), tile_chunk(linear),
          [&](int first, int last) { multiply(linear, x, rows, first, last, finish); });
  }

  void project(const Linear& linear, int stage) {
    product(linear, m.normed.data(), num_tokens_, stage,
            [&](int row, int tile, __m512 low, __m512 high) {
              store_columns(m.projected.data() + (int64_t)row * linear.n, linear.n,
                            tile * kTileColumns, low, high, linear.bias);
            });
  }

  static void store_columns(float* to, int n, int column, __m512 low, __m512 high,
                            const std::vector<float>& bias) {
    const auto store = [&](int first, __m512 sums) {
      if (first >= n) return;
      const __mmask16 mask = n - first >= kLanes ? 0xffff : (1 << (n - first)) - 1;
      if (!bias.empty()) sums = _mm512_add_ps(sums, _mm512_maskz_loadu_ps(mask, &bias[first]));
      _mm512_mask_storeu_ps(to + first, mask, sums);
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
    const __m512 scale = _mm512_set1_ps(shape.attention_scale);
    for (int h = 0; h < shape.heads; ++h) {
      float* head = row + h * d;
      norm_head(head, layer.query_norm, shape.norm_eps);
      rotate(head, cosine, sine, d);
      bf16* to = m.queries.data() + ((int64_t)token * shape.heads + h) * d;
      for (int i = 0; i < d; i += kLanes)
        store_bf16(to + i, _mm512_mul_ps(_mm512_loadu_ps(head + i), scale));
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
      rows.to[r] = m.attended.data() + offset;
      rows.position[r] = tokens_[token].position;
    }
    attend(m, layer, head, table(sequence, layer), rows, scratch);
  }

  // residual += x times the linear layer.
  void add_product(const Linear& linear, const bf16* x, int stage) {
    product(linear, x, num_tokens_, stage, [&](int row, int tile, __m512 low, __m512 high) {
      const auto add = [&](int first, __m512 sums) {
        if (first >= linear.n) return;
        float* to = m.residual.data() + (int64_t)row * linear.n + first;
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums));
      };
      add(tile * kTileColumns, low);
      add(tile * kTileColumns + kLanes, high);
    });
  }

  void gate(const Linear& linear, int stage) {
    product(linear, m.normed.data(), num_tokens_, stage,
            [&](int row, int tile, __m512 gate, __m512 up) {
              store_bf16(m.gated.data() + (int64_t)row * shape.ffn + tile * kLanes,
                         _mm512_mul_ps(silu_ps(gate), up));
            });
  }

  void select(int index) {
    rms_norm(m.residual.data() + (int64_t)logit_tokens_[index] * shape.hidden, m.final_norm.data(),
             shape.hidden, shape.norm_eps, m.selected.data() + (int64_t)index * shape.hidden);
  }

  void predict(int stage) {
    product(m.head, m.selected.data(), num_logits_, stage,
            [&](int row, int tile, __m512 low, __m512 high) {
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

// ---------------------------------------------------------------------------------------- packing

// Copies rows of `from` [n][k] into tiles; row i of the tile column comes from `source(i)`.
template <typename Source>
void pack_tiles(Team& team, bf16* to, int tiles, int k, Source source) {
  std::atomic<int> next{0};
  team.run([&](int) {
    for (int tile; (tile = next.fetch_add(1)) < tiles;) {
      bf16* base = to + (int64_t)tile * kTileColumns * k;
      for (int column = 0; column < kTileColumns; ++column) {
        const bf16* row = source(tile * kTileColumns + column);
        for (int pair = 0; pair < k / 2; ++pair) {
          uint32_t bits = 0;
          if (row) std::memcpy(&bits, row + 2 * pair, 4);
          std::memcpy(base + ((int64_t)pair * kTileColumns + column) * 2, &bits, 4);
        }
      }
    }
  });
}

bool reserve(Decoder& model, Linear& linear, int n, int k) {
  linear.n = n;
  linear.k = k;
  linear.weights = (bf16*)model.take((size_t)linear.tiles() * kTileColumns * k * sizeof(bf16));
  return linear.weights != nullptr;
}

}  // namespace

extern "C" {

bool native_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

// Returns null when there is not enough address space or memory.
Decoder* native_create(const Shape* shape, const float* cosines, const float* sines) {
  auto model = std::make_unique<Decoder>();
  model->shape = *shape;
  model->team = std::make_unique<Team>(shape->threads);
  model->layers.resize(shape->layers);
  model->counters = std::vector<std::atomic<int>>(3 + 8 * shape->layers);
  const size_t angles = (size_t)shape->max_positions * shape->head_dim / 2;
  model->cosines.assign(cosines, cosines + angles);
  model->sines.assign(sines, sines + angles);
  model->final_norm.resize(shape->hidden);
  const int attention = shape->heads * shape->head_dim;
  const int qkv = attention + 2 * shape->kv_heads * shape->head_dim;
  bool fits = reserve(*model, model->head, shape->vocab, shape->hidden);
  for (auto& layer : model->layers)
    fits = fits && reserve(*model, layer.qkv, qkv, shape->hidden) &&
           reserve(*model, layer.out, shape->hidden, attention) &&
           reserve(*model, layer.gate_up, 2 * shape->ffn, shape->hidden) &&
           reserve(*model, layer.down, shape->hidden, shape->ffn);
  return fits ? model.release() : nullptr;
}

// Gives a layer its place: which block table it uses, how many blocks that group has, and how far
// back it sees (0: everything). False when the memory is not there.
bool native_set_layer(Decoder* model, int layer, int group, int num_blocks, int window) {
  Layer& to = model->layers[layer];
  const size_t num_bytes = (size_t)num_blocks * model->block_size() * sizeof(bf16);
  to.group = group;
  to.window = window;
  to.keys = (bf16*)model->take(num_bytes);
  to.values = (bf16*)model->take(num_bytes);
  return to.keys && to.values;
}

void native_destroy(Decoder* model) { delete model; }

// Which linear layer `native_set_linear` fills. Must match `NativeLinear` in runtime/native.py.
enum { kQkv = 0, kOut = 1, kGateUp = 2, kDown = 3, kHead = 4 };

// Fills rows first_row .. of a linear layer from row-major bf16 [num_rows][k]. For kGateUp the
// gate's rows are 0 .. ffn - 1 and up's are ffn .. 2 * ffn - 1, both given in one call.
void native_set_linear(Decoder* model, int which, int layer, const bf16* const* rows, int n) {
  Linear& linear = which == kHead     ? model->head
                   : which == kQkv    ? model->layers[layer].qkv
                   : which == kOut    ? model->layers[layer].out
                   : which == kGateUp ? model->layers[layer].gate_up
                                      : model->layers[layer].down;
  const int ffn = model->shape.ffn;
  pack_tiles(*model->team, linear.weights, linear.tiles(), linear.k, [&](int row) -> const bf16* {
    if (row >= n) return nullptr;
    if (which != kGateUp) return rows[row];
    const int tile = row / kTileColumns, column = row % kTileColumns;
    return column < kLanes ? rows[tile * kLanes + column]
                           : rows[ffn + tile * kLanes + column - kLanes];
  });
}

// Which vector `native_set_vector` fills. Must match `NativeVector` in runtime/native.py.
enum { kAttentionNorm = 0, kMlpNorm = 1, kQueryNorm = 2, kKeyNorm = 3, kQkvBias = 4, kFinalNorm = 5 };

void native_set_vector(Decoder* model, int which, int layer, const float* values, int size) {
  std::vector<float>& to = which == kFinalNorm       ? model->final_norm
                           : which == kAttentionNorm ? model->layers[layer].attention_norm
                           : which == kMlpNorm       ? model->layers[layer].mlp_norm
                           : which == kQueryNorm     ? model->layers[layer].query_norm
                           : which == kKeyNorm       ? model->layers[layer].key_norm
                                                     : model->layers[layer].qkv.bias;
  to.assign(values, values + size);
}

// Only for models whose embedding is not tied to the head.
void native_set_embedding(Decoder* model, const bf16* rows) {
  model->embedding.assign(rows, rows + (size_t)model->shape.vocab * model->shape.hidden);
}

// Computes one step. `logits` is float32 [num_logits][vocab]; `logit_tokens` are batch indices.
void native_step(Decoder* model, const int32_t* token_ids, int num_tokens, const Sequence* sequences,
                 int num_sequences, const int32_t* logit_tokens, int num_logits, float* logits) {
  Step(*model, token_ids, num_tokens, sequences, num_sequences, logit_tokens, num_logits, logits).run();
}

}  // extern "C"
