// A linear layer in codes by itself, for models that PyTorch computes.

#pragma once

#include <vector>

#include "product.h"

namespace native {

// A multiple of 16 inputs, in groups of at most 128.
class CodesLinear {
 public:
  CodesLinear(int n, int k, int bits, int group_size) {
    linear_.n = n;
    linear_.k = k;
    linear_.format = Format::kCodes;
    linear_.bits = bits;
    linear_.group_size = group_size;
    linear_.weights = (char*)allocate(num_bytes());
  }

  ~CodesLinear() {
    if (is_there()) munmap(linear_.weights, num_bytes());
  }

  bool is_there() const { return linear_.weights != nullptr; }

  void fill(Team& team, const CodesFormat& format, const CodesPart& part) {
    pack_codes(team, linear_, format, [&](int row) -> CodesRow {
      return {row < linear_.n ? &part : nullptr, row};
    });
  }

  // An exact row is two, what 16 bits hold of it and the rest, whose products are added.
  void multiply(Team& team, const float* x, int rows, bool is_exact, float* out) {
    const int parts = is_exact ? 2 : 1;
    const float* x_parts = is_exact ? with_rests(x, rows) : x;
    prepare(team, x_parts, rows * parts);
    const int n = linear_.n;
    std::atomic<int> next{0};
    team.run([&](int) {
      const int chunk = std::max(1, linear_.tiles() / (4 * team.size()));
      for (int first; (first = next.fetch_add(chunk)) < linear_.tiles();)
        multiply_codes(linear_.weights, linear_.codes_tile(), integers_.data(), sums_.data(),
                       scales_.data(), rows * parts, first, std::min(first + chunk, linear_.tiles()),
                       [&](int row, int tile, Floats low, Floats high) {
                         const bool is_rest = row % parts != 0;
                         float* to = out + (int64_t)(row / parts) * n;
                         const auto put = [&](int column, Floats sums) {
                           if (column >= n) return;
                           if (is_rest) sums = load_some(to + column, n - column) + sums;
                           store_some(to + column, sums, n - column);
                         };
                         put(tile * kTileColumns, low);
                         put(tile * kTileColumns + kLanes, high);
                       });
    });
  }

 private:
  size_t num_bytes() const { return (size_t)linear_.tiles() * linear_.tile_bytes(); }

  // [rows][2][k]: each row, and what rounding it to 16 bits loses.
  const float* with_rests(const float* x, int rows) {
    const int k = linear_.k;
    grow(parts_, 2 * (int64_t)rows * k);
    for (int r = 0; r < rows; ++r, x += k) {
      float* to = &parts_[2 * (int64_t)r * k];
      const float most = largest(x, k);
      const Floats inverse = all(most > 0 ? 32767 / most : 0), scale = all(most / 32767);
      for (int i = 0; i < k; i += kLanes) {
        const Floats value = load(x + i);
        store(to + i, value);
        store(to + k + i, subtract_product(value, rounded(value * inverse), scale));
      }
    }
    return parts_.data();
  }

  void prepare(Team& team, const float* x, int rows) {
    const int k = linear_.k, groups = linear_.codes_tile().groups();
    grow(integers_, (int64_t)rows * padded(k));
    grow(scales_, rows);
    grow(sums_, (int64_t)rows * groups);
    std::atomic<int> next{0};
    const auto work = [&](int) {
      for (int group; (group = next.fetch_add(1)) < num_row_groups(rows);) {
        const int first = group * kRowGroup, width = rows_of_group(rows, first);
        int16_t* to = &integers_[(int64_t)first * padded(k)];
        quantize_rows(x + (int64_t)first * k, k, width, to, &scales_[first]);
        sum_groups(to, width, groups, linear_.group_size, &sums_[(int64_t)first * groups]);
      }
    };
    if (num_row_groups(rows) == 1) return work(0);
    team.run(work);
  }

  Linear linear_;
  std::vector<float> parts_;       // [rows][2][k]
  std::vector<int16_t> integers_;  // [row groups][padded k/2][rows of the group][2]
  std::vector<float> scales_;      // [rows]
  std::vector<int32_t> sums_;      // [row groups][groups][rows of the group]
};

}  // namespace native
