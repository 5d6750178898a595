// The words of simd.h on AVX-512 (F, BW, VL, DQ), with VNNI where it is compiled for.

#pragma once

namespace native {

constexpr int kNumRegisters = 32;

using Floats = __m512;   // 16 float32; + - * / are the language's
using Ints = __m512i;    // 16 int32
using Shorts = __m512i;  // 16 pairs of int16

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats all(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }

inline __mmask16 first_lanes(int count) { return count >= kLanes ? 0xffff : (1 << count) - 1; }

// Of the first `count` lanes; the others are zero.
inline Floats load_some(const float* from, int count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), from);
}

inline void store_some(float* to, Floats x, int count) {
  _mm512_mask_storeu_ps(to, first_lanes(count), x);
}

// The products are rounded once, together with the sum.
inline Floats add_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
inline Floats subtract_product(Floats from, Floats a, Floats b) { return _mm512_fnmadd_ps(a, b, from); }
inline Floats product_minus(Floats a, Floats b, Floats less) { return _mm512_fmsub_ps(a, b, less); }

inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b if either is NaN
inline Floats rounded(Floats x) { return _mm512_roundscale_ps(x, 0); }    // to nearest even
inline Floats times_power_of_two(Floats x, Floats power) { return _mm512_scalef_ps(x, power); }

// x where a > b, 0 elsewhere.
inline Floats where_greater(Floats a, Floats b, Floats x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), x);
}

inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }

// Magnitudes, compared as integers: NaN is the largest of all. `most` must not be negative.
inline Floats larger_magnitude(Floats most, Floats x) {
  const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(most), bits));
}

inline float largest_magnitude(Floats most) {
  const int bits = _mm512_reduce_max_epi32(_mm512_castps_si512(most));
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline Floats load(const bf16* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// The first and the second bf16 of 16 pairs that stand side by side.
inline Floats load_firsts(const bf16* pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16));
}
inline Floats load_seconds(const bf16* pairs) {
  const __m512i mask = _mm512_set1_epi32((int)0xffff0000);
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pairs), mask));
}

inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Shorts load_bytes(const int8_t* from) {  // 32 of them, widened
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
}
inline Ints load_ints(const int32_t* from) { return _mm512_loadu_si512(from); }
inline Ints load_codes(const uint8_t* from) {  // 16 of them, widened
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
}
// The lowest bits of each int16, and the following ones in their place.
template <int Bits>
inline Shorts low_codes(Ints words) {
  return _mm512_and_si512(words, _mm512_set1_epi32(((1 << Bits) - 1) * 0x10001));
}
template <int Bits>
inline Ints next_codes(Ints words) {
  return _mm512_srli_epi32(words, Bits);
}
inline Ints less_product(Ints from, Ints a, int b) {
  return _mm512_sub_epi32(from, _mm512_mullo_epi32(a, _mm512_set1_epi32(b)));
}
inline Shorts all_pairs(const int16_t* pair) { return _mm512_set1_epi32(bits_of(pair)); }

// Both products of every pair are added to the pair's sum, exactly.
inline Ints add_products(Ints sums, Shorts a, Shorts b) {
#ifdef __AVX512VNNI__
  asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));  // GCC 12 copies sums at every intrinsic
  return sums;
#else
  return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b));
#endif
}

// Rounded to nearest even, and to the nearest there is.
inline void store_rounded(int16_t* to, Floats x) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}
inline void store_rounded(int8_t* to, Floats x) {
  _mm_storeu_si128((__m128i*)to, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

}  // namespace native
