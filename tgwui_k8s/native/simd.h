// AVX-512 registers of float32 and bf16, and memory on huge pages.

#pragma once

#include <immintrin.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace native {

using bf16 = uint16_t;

constexpr int kLanes = 16;        // float32 lanes of a register
constexpr int kTileColumns = 32;  // output rows of one packed weight tile

inline __m512bh as_bh(__m512i bits) { return (__m512bh)bits; }

inline __m512bh load_pairs(const bf16* from) { return as_bh(_mm512_loadu_si512(from)); }

inline __m512i broadcast_32(const void* from) {
  int bits;
  std::memcpy(&bits, from, 4);
  return _mm512_set1_epi32(bits);
}

inline __m512bh broadcast_pair(const bf16* pair) { return as_bh(broadcast_32(pair)); }

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

template <typename T>
void grow(std::vector<T>& buffer, int64_t size) {
  if ((int64_t)buffer.size() < size) buffer.resize(size);
}

// Memory on huge pages: weights and KV cache are read from end to end.
inline void* allocate(size_t num_bytes) {
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, num_bytes, MADV_HUGEPAGE);
  return memory;
}

}  // namespace native
