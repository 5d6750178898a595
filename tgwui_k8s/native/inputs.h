// Rows that are multiplied with linear layers.

#pragma once

#include <vector>

#ifdef __AVX512BF16__
#include "bf16_product.h"
#else
#include "widened_product.h"
#endif
#include "codes_product.h"

namespace native {

// How the weights of a linear layer are held. Must match `WeightFormat` in runtime/native.py.
enum class Format : int32_t { kBf16 = 0, kInt8 = 1, kCodes = 2 };

// The rows of one step: filled by `row`, then prepared group by group, by whichever threads, then
// multiplied.
class Inputs {
 public:
  // `group_size` is that of codes.
  void set_shape(int k, Format format, int group_size) {
    k_ = k;
    is_quantized_ = format != Format::kBf16;
    num_sums_ = format == Format::kCodes ? k / group_size : 0;
  }

  void resize(int rows) {
    rows_ = rows;
    grow(values_, (int64_t)rows * k_);
    if (is_quantized_) {
      grow(integers_, (int64_t)rows * padded(k_));
      grow(scales_, rows);
      grow(sums_, (int64_t)rows * num_sums_);
    } else if (is_grouped()) {
      grow(grouped_, (int64_t)rows * k_);
    }
  }

  Activation* row(int index) { return values_.data() + (int64_t)index * k_; }

  // None if rows are multiplied as they are.
  int num_groups_to_prepare() const {
    return is_quantized_ || is_grouped() ? num_row_groups(rows_) : 0;
  }

  void prepare(int group) {
    const int first = group * kRowGroup, width = rows_of_group(rows_, first);
    if (is_quantized_) {
      int16_t* to = &integers_[(int64_t)first * padded(k_)];
      quantize_rows(row(first), k_, width, to, &scales_[first]);
      if (num_sums_ > 0)
        sum_groups(to, width, num_sums_, k_ / num_sums_, &sums_[(int64_t)first * num_sums_]);
    } else {
      for (int i = 0; i < k_; i += kLanes)
        for (int r = 0; r < width; ++r)
          put_beside(row(first + r) + i, width, &grouped_[(int64_t)first * k_ + i * width + 2 * r]);
    }
  }

  // [rows][k], or as the product with bf16 weights wants them.
  const Activation* for_bf16() const { return is_grouped() ? grouped_.data() : values_.data(); }
  const int16_t* integers() const { return integers_.data(); }
  const float* scales() const { return scales_.data(); }
  const int32_t* sums() const { return sums_.data(); }

 private:
  bool is_grouped() const { return kGroupsRows && rows_ > 1; }  // one row is a group as it is

  int k_ = 0, rows_ = 0, num_sums_ = 0;
  bool is_quantized_ = false;
  std::vector<Activation> values_;   // [rows][k]
  std::vector<Activation> grouped_;  // [row groups][k/2][rows of the group][2]
  std::vector<int16_t> integers_;    // [row groups][padded k/2][rows of the group][2]
  std::vector<float> scales_;        // [rows]
  std::vector<int32_t> sums_;        // [row groups][num_sums][rows of the group]
};

}  // namespace native
