// The forward pass of Llama-shaped decoders on x86-64 CPUs, over a paged KV cache.
//
// One call computes a whole step: every token of every sequence of the batch, prefill and decode
// alike. Weights are bf16, int8 or codes, packed once at load; sums, the residual stream, norms, softmax
// and logits are float32. Plain C interface, no torch: `tgwui_k8s/runtime/native.py` binds it.
//
//   simd.h             registers: simd_avx512.h or simd_avx2.h
//   pairs.h            bf16 times activations
//   tiles.h            rows and weight tiles that are taken together
//   bf16_product.h     tiles of bf16 weights, with BF16 instructions
//   widened_product.h  the same without
//   int8_product.h     tiles of int8 weights
//   codes_product.h    tiles of weights in codes of 4 or 8 bits
//   codes_linear.h     linear layers in codes by themselves
//   inputs.h           rows that meet them
//   product.h          linear layers
//   attention.h        paged attention
//   model.h            what is loaded
//   step.h             one step through all layers
//   team.h             threads
//
// Compiled once for each kind of processor, see hatch_build.py. Sums are formed in the same order
// whatever the batch, and in the same order on all processors without BF16 instructions.
//
// The gate and up projections are interleaved by 16 rows, so that one tile holds both and
// SiLU(gate) * up is formed in registers.

#include "codes_linear.h"
#include "step.h"

using namespace native;

namespace {

bool reserve(Decoder& model, Linear& linear, int n, int k, Format format) {
  linear.n = n;
  linear.k = k;
  linear.format = format;
  linear.bits = model.shape.bits;
  linear.group_size = model.shape.group_size;
  linear.weights = (char*)model.take((size_t)linear.tiles() * linear.tile_bytes());
  return linear.weights != nullptr;
}

// Which linear layer. Must match `NativeLinear` in runtime/native.py.
enum { kQkv = 0, kOut = 1, kGateUp = 2, kDown = 3, kHead = 4 };

Linear& linear_of(Decoder& model, int which, int layer) {
  return which == kHead     ? model.head
         : which == kQkv    ? model.layers[layer].qkv
         : which == kOut    ? model.layers[layer].out
         : which == kGateUp ? model.layers[layer].gate_up
                            : model.layers[layer].down;
}

// Which row of the checkpoint's layer a packed row is; -1 for the padding.
int checkpoint_row(const Decoder& model, int which, int row, int n) {
  if (row >= n) return -1;
  if (which != kGateUp) return row;
  const int tile = row / kTileColumns, column = row % kTileColumns;
  return column < kLanes ? tile * kLanes + column : model.shape.ffn + tile * kLanes + column - kLanes;
}

}  // namespace

extern "C" {

// Returns null when there is not enough address space or memory.
Decoder* native_create(const Shape* shape, const float* cosines, const float* sines) {
  auto model = std::make_unique<Decoder>();
  model->shape = *shape;
  model->team = std::make_unique<Team>(shape->threads);
  model->layers.resize(shape->layers);
  model->counters = std::vector<std::atomic<int>>(4 + 12 * shape->layers);
  const size_t angles = (size_t)shape->max_positions * shape->head_dim / 2;
  model->cosines.assign(cosines, cosines + angles);
  model->sines.assign(sines, sines + angles);
  model->final_norm.resize(shape->hidden);
  const int attention = shape->heads * shape->head_dim;
  const int qkv = attention + 2 * shape->kv_heads * shape->head_dim;
  const Format format = shape->format;
  const Format head_format = format == Format::kCodes ? Format::kBf16 : format;
  model->normed.set_shape(shape->hidden, format, shape->group_size);
  model->attended.set_shape(attention, format, shape->group_size);
  model->gated.set_shape(shape->ffn, format, shape->group_size);
  model->selected.set_shape(shape->hidden, head_format, shape->group_size);
  bool fits = reserve(*model, model->head, shape->vocab, shape->hidden, head_format);
  for (auto& layer : model->layers)
    fits = fits && reserve(*model, layer.qkv, qkv, shape->hidden, format) &&
           reserve(*model, layer.out, shape->hidden, attention, format) &&
           reserve(*model, layer.gate_up, 2 * shape->ffn, shape->hidden, format) &&
           reserve(*model, layer.down, shape->hidden, shape->ffn, format);
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

// Packs a linear layer from row-major bf16 rows [k] each. For kGateUp the gate's rows are
// 0 .. ffn - 1 and up's are ffn .. 2 * ffn - 1, both given in one call.
void native_set_linear(Decoder* model, int which, int layer, const bf16* const* rows, int n) {
  pack(*model->team, linear_of(*model, which, layer), [&](int row) -> const bf16* {
    const int from = checkpoint_row(*model, which, row, n);
    return from < 0 ? nullptr : rows[from];
  });
}

// The same from codes: the rows are those of the parts, one part after the other.
void native_set_codes(Decoder* model, int which, int layer, const CodesFormat* format,
                      const CodesPart* parts, int num_parts) {
  int n = 0;
  for (int i = 0; i < num_parts; ++i) n += parts[i].n;
  pack_codes(*model->team, linear_of(*model, which, layer), *format, [&](int row) -> CodesRow {
    int output = checkpoint_row(*model, which, row, n);
    if (output < 0) return {nullptr, 0};
    const CodesPart* part = parts;
    for (; output >= part->n; ++part) output -= part->n;
    return {part, output};
  });
}

// Reads packed row `row` of a linear layer back, as float32 [k] (for kGateUp in packed order).
void native_get_row(Decoder* model, int which, int layer, int row, float* to) {
  unpack_row(linear_of(*model, which, layer), row, to);
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

// ----------------------------------------------------------------- linear layers by themselves
// Bound by runtime/quantized/native.py.

CodesTeam* native_create_team(int num_threads) { return new CodesTeam(num_threads); }

void native_destroy_team(CodesTeam* team) { delete team; }

// Returns null when there is not enough memory.
CodesLinear* native_create_codes(int n, int k, int bits, int group_size) {
  auto layer = std::make_unique<CodesLinear>(n, k, bits, group_size);
  return layer->is_there() ? layer.release() : nullptr;
}

void native_fill_codes(CodesLinear* layer, CodesTeam* team, const CodesFormat* format,
                       const CodesPart* part) {
  layer->fill(team->threads(), *format, *part);
}

// out [rows][n] = x [rows][k] times the weight; `is_exact`: x is not rounded to 16 bits.
void native_multiply_codes(const CodesLinear* layer, CodesTeam* team, const float* x, int rows,
                           bool is_exact, float* out) {
  team->multiply(layer->linear(), x, rows, is_exact, out);
}

void native_destroy_codes(CodesLinear* layer) { delete layer; }

}  // extern "C"
