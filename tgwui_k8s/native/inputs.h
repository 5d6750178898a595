// Rows that are multiplied with linear layers.

#pragma once

#include <vector>

#ifdef __AVX512BF16__
#include "bf16_product.h"
#else
#include "widened_product.h"
#endif
#include "int8_product.h"

namespace native {

// The rows of one step: filled by `row`, then prepared part by part, by whichever threads, then
// multiplied.
class Inputs {
 public:
  void set_shape(int k, bool is_quantized) {
    k_ = k;
    is_quantized_ = is_quantized;
  }

  void resize(int rows) {
    rows_ = rows;
    grow(values_, (int64_t)rows * k_);
    if (is_quantized_) {
      grow(integers_, (int64_t)rows * num_groups(k_) * kGroup);
      grow(scales_, rows);
    } else {
      groups_.resize(rows, k_);
    }
  }

  Activation* row(int index) { return values_.data() + (int64_t)index * k_; }

  // None if rows are multiplied as they are.
  int num_parts() const { return is_quantized_ ? rows_ : groups_.num_parts(); }

  void prepare(int part) {
    if (is_quantized_)
      scales_[part] = quantize_row(row(part), k_, integers_.data() + part * integers_size());
    else
      groups_.prepare(values_.data(), part);
  }

  const Activation* for_bf16() const { return groups_.data(values_.data()); }
  const int16_t* integers(int row) const { return integers_.data() + row * integers_size(); }
  const float* scales(int row) const { return scales_.data() + row; }

 private:
  int64_t integers_size() const { return (int64_t)num_groups(k_) * kGroup; }
  int k_ = 0, rows_ = 0;
  bool is_quantized_ = false;
  std::vector<Activation> values_;  // [rows][k]
  RowGroups groups_;                // they meet bf16 weights
  std::vector<int16_t> integers_;   // [rows][num_groups][kGroup]: they meet int8 weights
  std::vector<float> scales_;       // [rows]
};

}  // namespace native
