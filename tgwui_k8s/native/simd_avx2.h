// The words of simd.h on AVX2 and FMA: two registers each.

#pragma once

namespace native {

constexpr int kNumRegisters = 8;

struct Floats {  // 16 float32
  __m256 low, high;
};

struct Ints {  // 16 int32
  __m256i low, high;
};

using Shorts = Ints;  // 16 pairs of int16

inline Floats operator+(Floats a, Floats b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Floats operator-(Floats a, Floats b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Floats operator*(Floats a, Floats b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Floats operator/(Floats a, Floats b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}

// Of the first `count` lanes; the others are zero.
inline Floats load_some(const float* from, int count) {
  alignas(32) float lanes[kLanes] = {};
  std::memcpy(lanes, from, (count < kLanes ? count : kLanes) * sizeof(float));
  return load(lanes);
}
inline void store_some(float* to, Floats x, int count) {
  alignas(32) float lanes[kLanes];
  store(lanes, x);
  std::memcpy(to, lanes, (count < kLanes ? count : kLanes) * sizeof(float));
}

// The products are rounded once, together with the sum.
inline Floats add_product(Floats sum, Floats a, Floats b) {
  return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}
inline Floats subtract_product(Floats from, Floats a, Floats b) {
  return {_mm256_fnmadd_ps(a.low, b.low, from.low), _mm256_fnmadd_ps(a.high, b.high, from.high)};
}
inline Floats product_minus(Floats a, Floats b, Floats less) {
  return {_mm256_fmsub_ps(a.low, b.low, less.low), _mm256_fmsub_ps(a.high, b.high, less.high)};
}

inline Floats larger(Floats a, Floats b) {  // b if either is NaN
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Floats rounded(Floats x) {  // to nearest even
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, kNearest), _mm256_round_ps(x.high, kNearest)};
}

inline __m256 times_power_of_two(__m256 x, __m256 power) {
  // In two steps, so that each factor is a number where the product is; beyond 2^256 all overflow.
  const __m256i n = _mm256_cvtps_epi32(_mm256_min_ps(power, _mm256_set1_ps(256)));
  const __m256i half = _mm256_srai_epi32(n, 1), rest = _mm256_sub_epi32(n, half);
  const auto factor = [](__m256i exponent) {
    const __m256i biased = _mm256_add_epi32(exponent, _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  };
  return _mm256_mul_ps(_mm256_mul_ps(x, factor(half)), factor(rest));
}
inline Floats times_power_of_two(Floats x, Floats power) {  // of -126 and more
  return {times_power_of_two(x.low, power.low), times_power_of_two(x.high, power.high)};
}

// x where a > b, 0 elsewhere.
inline Floats where_greater(Floats a, Floats b, Floats x) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ), x.low),
          _mm256_and_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ), x.high)};
}

inline float sum_of(Floats x) {  // halves are added to halves
  const __m256 eight = _mm256_add_ps(x.high, x.low);
  const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float largest_of(Floats x) {
  const __m256 eight = _mm256_max_ps(x.high, x.low);
  const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// Magnitudes, compared as integers: NaN is the largest of all. `most` must not be negative.
inline __m256 larger_magnitude(__m256 most, __m256 x) {
  const __m256i bits = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(most), bits));
}
inline Floats larger_magnitude(Floats most, Floats x) {
  return {larger_magnitude(most.low, x.low), larger_magnitude(most.high, x.high)};
}
inline float largest_magnitude(Floats most) {
  alignas(32) int bits[8];
  _mm256_store_si256((__m256i*)bits, _mm256_castps_si256(larger_magnitude(most.low, most.high)));
  int largest = 0;
  for (int lane : bits) largest = lane > largest ? lane : largest;
  float result;
  std::memcpy(&result, &largest, 4);
  return result;
}

inline __m256 widened(const bf16* from) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Floats load(const bf16* from) { return {widened(from), widened(from + 8)}; }

// The first and the second bf16 of 16 pairs that stand side by side.
inline Floats load_firsts(const bf16* pairs) {
  const auto first = [](const bf16* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)from), 16));
  };
  return {first(pairs), first(pairs + kLanes)};
}
inline Floats load_seconds(const bf16* pairs) {
  const auto second = [](const bf16* from) {
    const __m256i mask = _mm256_set1_epi32((int)0xffff0000);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)from), mask));
  };
  return {second(pairs), second(pairs + kLanes)};
}

inline Ints no_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Shorts load_bytes(const int8_t* from) {  // 32 of them, widened
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from)),
          _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(from + 16)))};
}
inline Ints load_ints(const int32_t* from) {
  return {_mm256_loadu_si256((const __m256i*)from), _mm256_loadu_si256((const __m256i*)(from + 8))};
}
inline Ints load_codes(const uint8_t* from) {  // 16 of them, widened
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(from + 8)))};
}
// The lowest bits of each int16, and the following ones in their place.
template <int Bits>
inline Shorts low_codes(Ints words) {
  const __m256i mask = _mm256_set1_epi32(((1 << Bits) - 1) * 0x10001);
  return {_mm256_and_si256(words.low, mask), _mm256_and_si256(words.high, mask)};
}
template <int Bits>
inline Ints next_codes(Ints words) {
  return {_mm256_srli_epi32(words.low, Bits), _mm256_srli_epi32(words.high, Bits)};
}
inline Ints less_product(Ints from, Ints a, int b) {
  const __m256i factor = _mm256_set1_epi32(b);
  return {_mm256_sub_epi32(from.low, _mm256_mullo_epi32(a.low, factor)),
          _mm256_sub_epi32(from.high, _mm256_mullo_epi32(a.high, factor))};
}
inline Shorts all_pairs(const int16_t* pair) {
  const __m256i pairs = _mm256_set1_epi32(bits_of(pair));
  return {pairs, pairs};
}

// Both products of every pair are added to the pair's sum, exactly.
inline Ints add_products(Ints sums, Shorts a, Shorts b) {
  return {_mm256_add_epi32(sums.low, _mm256_madd_epi16(a.low, b.low)),
          _mm256_add_epi32(sums.high, _mm256_madd_epi16(a.high, b.high))};
}

// Rounded to nearest even, and to the nearest there is.
inline void store_rounded(int16_t* to, Floats x) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
  _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(packed, 0xd8));  // 0 2 1 3
}
inline void store_rounded(int8_t* to, Floats x) {
  alignas(32) int16_t shorts[kLanes];
  store_rounded(shorts, x);
  const __m128i* halves = (const __m128i*)shorts;
  _mm_storeu_si128((__m128i*)to, _mm_packs_epi16(halves[0], halves[1]));
}

}  // namespace native
