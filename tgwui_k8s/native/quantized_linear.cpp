// Products with weights in 4 or 8 bits, for CPUs. Bound by `tgwui_k8s/runtime/quantized/native.py`.
//
// A weight is scale * (code - zero); scale and zero belong to a group of inputs of one output.
// Decoding reads every weight once per step, so what counts is bytes: codes stay packed in memory
// and become numbers in registers, 16 outputs side by side.
//
//   codes     int32 [N/16][K/8][planes][16]   an int32: 8 inputs of one output, 4 bits each;
//                                             inputs 0 2 4 6 in the low half, 1 3 5 7 in the high
//   scales    float32 [N/16][groups][16]
//   zeros     uint8 [N/16][groups][16]
//
// An 8-bit code is two planes, its high and its low 4 bits. bf16 inputs are multiplied exactly:
// every code, and every product, fits float32. A row's outputs are the same whatever rows stand
// beside it.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "team.h"

namespace {

using bf16 = uint16_t;
using native::Team;

constexpr int kLanes = 16;
constexpr int kPackedInputs = 8;  // inputs in one int32
constexpr int kPairs = 4;         // pairs of inputs in one int32, each with its own sum
constexpr int kRows = 4;          // rows that share an unpacked weight
constexpr int kPrefetch = 1024;   // bytes

}  // namespace

extern "C" struct QuantizedWeight {  // `_Weight` of runtime/quantized/native.py
  const int32_t* codes;
  const float* scales;
  const uint8_t* zeros;
  int32_t inputs;
  int32_t outputs;
  int32_t group_size;
  int32_t planes;
};

namespace {

struct Tile {  // 16 outputs
  const int32_t* codes;
  const float* scales;
  const uint8_t* zeros;
  int width;  // outputs that exist

  Tile(const QuantizedWeight& weight, int index) {
    const int64_t groups = weight.inputs / weight.group_size;
    const int64_t words = (int64_t)weight.inputs / kPackedInputs * weight.planes;
    codes = weight.codes + index * words * kLanes;
    scales = weight.scales + index * groups * kLanes;
    zeros = weight.zeros + index * groups * kLanes;
    width = std::min(kLanes, weight.outputs - index * kLanes);
  }
};

// ---------------------------------------------------------------------------- bf16, AVX-512 BF16

#define AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

bf16 exact_bf16(int value) {  // |value| <= 256
  const float number = (float)value;
  uint32_t bits;
  std::memcpy(&bits, &number, 4);
  return (bf16)(bits >> 16);
}

// What the 4 bits of a plane are worth, as bf16; codes count from the middle, so that sums stay
// small. Twice 16 entries: the permutation also looks at the next higher bit.
struct Worth {
  alignas(64) bf16 values[2][2 * kLanes];
  int middle;

  explicit Worth(int planes) : middle(planes == 1 ? 8 : 128) {
    for (int plane = 0; plane < planes; ++plane)
      for (int bits = 0; bits < 2 * kLanes; ++bits) {
        const int code = bits % kLanes;
        const bool is_high = plane == 0;
        const int unit = planes == 2 && is_high ? 16 : 1;
        values[plane][bits] = exact_bf16(is_high ? (code - 8) * unit : code);
      }
  }
};

AVX512_BF16 inline __m512bh broadcast_pair(const bf16* pair) {
  int bits;
  std::memcpy(&bits, pair, 4);
  return (__m512bh)_mm512_set1_epi32(bits);
}

// `sums` [rows][groups]: of the inputs of each group.
template <int Rows, int Planes>
AVX512_BF16 void tile_product_bf16(const QuantizedWeight& weight, const Tile& tile,
                                   const Worth& worth, const bf16* x, const float* sums,
                                   bf16* out) {
  const int groups = weight.inputs / weight.group_size;
  const int words = weight.group_size / kPackedInputs;
  __m512i table[Planes];
  for (int plane = 0; plane < Planes; ++plane) table[plane] = _mm512_load_si512(worth.values[plane]);
  const __m512 middle = _mm512_set1_ps((float)worth.middle);
  __m512 total[Rows];
  for (auto& value : total) value = _mm512_setzero_ps();
  const int32_t* codes = tile.codes;
  for (int group = 0; group < groups; ++group) {
    __m512 sum[Rows][kPairs];
    for (auto& row : sum)
      for (auto& value : row) value = _mm512_setzero_ps();
    const bf16* inputs = x + group * weight.group_size;
    for (int word = 0; word < words; ++word, inputs += kPackedInputs) {
      for (int plane = 0; plane < Planes; ++plane, codes += kLanes) {
        _mm_prefetch((const char*)codes + kPrefetch, _MM_HINT_T0);
        const __m512i packed = _mm512_loadu_si512(codes);
        const __m512i shifted[kPairs] = {packed, _mm512_srli_epi16(packed, 4),
                                         _mm512_srli_epi16(packed, 8),
                                         _mm512_srli_epi16(packed, 12)};
        for (int pair = 0; pair < kPairs; ++pair) {
          const auto values = (__m512bh)_mm512_permutexvar_epi16(shifted[pair], table[plane]);
          for (int row = 0; row < Rows; ++row) {
            const bf16* from = inputs + (int64_t)row * weight.inputs + 2 * pair;
            sum[row][pair] = _mm512_dpbf16_ps(sum[row][pair], values, broadcast_pair(from));
          }
        }
      }
    }
    const __m512 scale = _mm512_loadu_ps(tile.scales + group * kLanes);
    const __m128i bytes = _mm_loadu_si128((const __m128i*)(tile.zeros + group * kLanes));
    const __m512 zero = _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), middle);
    for (int row = 0; row < Rows; ++row) {
      const __m512 product = _mm512_add_ps(_mm512_add_ps(sum[row][0], sum[row][1]),
                                           _mm512_add_ps(sum[row][2], sum[row][3]));
      const __m512 inputs_sum = _mm512_set1_ps(sums[(int64_t)row * groups + group]);
      const __m512 centred = _mm512_fnmadd_ps(zero, inputs_sum, product);
      total[row] = _mm512_fmadd_ps(scale, centred, total[row]);
    }
  }
  const __mmask16 mask = (__mmask16)((1u << tile.width) - 1);
  for (int row = 0; row < Rows; ++row)
    _mm256_mask_storeu_epi16(out + (int64_t)row * weight.outputs, mask,
                             (__m256i)_mm512_cvtneps_pbh(total[row]));
}

AVX512_BF16 float sum_bf16(const bf16* values, int size) {  // a multiple of 8
  __m256 sum = _mm256_setzero_ps();
  for (int i = 0; i < size; i += 8) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(values + i)));
    sum = _mm256_add_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, sum);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
         ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

template <int Planes>
void rows_product_bf16(const QuantizedWeight& weight, const Tile& tile, const Worth& worth,
                       const bf16* x, const float* sums, int rows, bf16* out) {
  const int64_t groups = weight.inputs / weight.group_size;
  for (int row = 0; row < rows; row += kRows) {
    const bf16* from = x + (int64_t)row * weight.inputs;
    const float* from_sums = sums + row * groups;
    bf16* to = out + (int64_t)row * weight.outputs;
    switch (std::min(kRows, rows - row)) {
      case 1: tile_product_bf16<1, Planes>(weight, tile, worth, from, from_sums, to); break;
      case 2: tile_product_bf16<2, Planes>(weight, tile, worth, from, from_sums, to); break;
      case 3: tile_product_bf16<3, Planes>(weight, tile, worth, from, from_sums, to); break;
      default: tile_product_bf16<4, Planes>(weight, tile, worth, from, from_sums, to);
    }
  }
}

// ------------------------------------------------------------------------ float32, any processor

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

template <typename Vector>
inline __attribute__((always_inline)) void load(Vector& to, const void* from) {
  std::memcpy(&to, from, sizeof(Vector));
}

template <int Rows>
inline __attribute__((always_inline)) void tile_product_float(const QuantizedWeight& weight,
                                                              const Tile& tile, const float* x,
                                                              float* out) {
  const int groups = weight.inputs / weight.group_size;
  const int words = weight.group_size / kPackedInputs;
  Floats total[Rows] = {};
  const int32_t* codes = tile.codes;
  for (int group = 0; group < groups; ++group) {
    Floats sum[Rows] = {};
    Bytes bytes;
    load(bytes, tile.zeros + group * kLanes);
    const Ints zero = __builtin_convertvector(bytes, Ints);
    const float* inputs = x + group * weight.group_size;
    for (int word = 0; word < words; ++word, inputs += kPackedInputs) {
      Ints planes[2];
      for (int plane = 0; plane < weight.planes; ++plane, codes += kLanes)
        load(planes[plane], codes);
      for (int input = 0; input < kPackedInputs; ++input) {
        const int shift = input / 2 * 4 + input % 2 * 16;
        Ints code = (planes[0] >> shift) & 15;
        if (weight.planes == 2) code = code * 16 + ((planes[1] >> shift) & 15);
        const Floats value = __builtin_convertvector(code - zero, Floats);
        for (int row = 0; row < Rows; ++row)
          sum[row] += value * inputs[(int64_t)row * weight.inputs + input];
      }
    }
    Floats scale;
    load(scale, tile.scales + group * kLanes);
    for (int row = 0; row < Rows; ++row) total[row] += scale * sum[row];
  }
  for (int row = 0; row < Rows; ++row)
    std::memcpy(out + (int64_t)row * weight.outputs, &total[row], tile.width * sizeof(float));
}

__attribute__((target_clones("avx512f", "avx2", "default")))
void rows_product_float(const QuantizedWeight& weight, const Tile& tile, const float* x, int rows,
                        float* out) {
  int row = 0;
  for (; row + kRows <= rows; row += kRows)
    tile_product_float<kRows>(weight, tile, x + (int64_t)row * weight.inputs,
                              out + (int64_t)row * weight.outputs);
  for (; row < rows; ++row)
    tile_product_float<1>(weight, tile, x + (int64_t)row * weight.inputs,
                          out + (int64_t)row * weight.outputs);
}

// -------------------------------------------------------------------------------------- the call

struct Span {
  int first;
  int last;

  Span(int size, int member, int members)
      : first((int)((int64_t)size * member / members)),
        last((int)((int64_t)size * (member + 1) / members)) {}
};

int num_tiles(const QuantizedWeight& weight) { return (weight.outputs + kLanes - 1) / kLanes; }

void multiply_bf16(Team& team, const QuantizedWeight& weight, const bf16* x, int rows, bf16* out) {
  const Worth worth(weight.planes);
  const int groups = weight.inputs / weight.group_size;
  std::vector<float> sums((size_t)rows * groups);
  // x is [rows][groups][group_size] without gaps.
  for (size_t i = 0; i < sums.size(); ++i)
    sums[i] = sum_bf16(x + i * weight.group_size, weight.group_size);
  team.run([&](int member) {
    const Span tiles(num_tiles(weight), member, team.size());
    const auto product = weight.planes == 1 ? rows_product_bf16<1> : rows_product_bf16<2>;
    for (int tile = tiles.first; tile < tiles.last; ++tile)
      product(weight, Tile(weight, tile), worth, x, sums.data(), rows, out + tile * kLanes);
  });
}

void multiply_float(Team& team, const QuantizedWeight& weight, const float* x, int rows,
                    float* out) {
  team.run([&](int member) {
    const Span tiles(num_tiles(weight), member, team.size());
    for (int tile = tiles.first; tile < tiles.last; ++tile)
      rows_product_float(weight, Tile(weight, tile), x, rows, out + tile * kLanes);
  });
}

}  // namespace

extern "C" {

// Whether bf16 inputs can be multiplied here; float32 ones always can.
bool quantized_has_bf16() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw");
}

Team* quantized_create_team(int num_threads) { return new Team(num_threads); }

void quantized_destroy_team(Team* team) { delete team; }

// out [rows][outputs] = x [rows][inputs] times the weight; both bf16, or both float32.
void quantized_multiply(Team* team, const QuantizedWeight* weight, const void* x, int rows,
                        bool is_bf16, void* out) {
  if (is_bf16)
    multiply_bf16(*team, *weight, (const bf16*)x, rows, (bf16*)out);
  else
    multiply_float(*team, *weight, (const float*)x, rows, (float*)out);
}

}  // extern "C"
