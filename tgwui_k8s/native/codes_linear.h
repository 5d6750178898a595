// Linear layers in codes by themselves, for models that PyTorch computes.

#pragma once

#include <vector>

#include "product.h"

namespace native {

// Threads that multiply, and what one product needs beside the weights: one for all layers of a
// model, used by one caller at a time.
class CodesTeam {
 public:
  explicit CodesTeam(int num_threads) : threads_(num_threads) {}

  Team& threads() { return threads_; }

  // out [rows][n] = x [rows][k] times a layer with a multiple of 16 inputs. An exact row is two, what
  // 16 bits hold of it and the rest, whose products are added.
  void multiply(const Linear& linear, const float* x, int rows, bool is_exact, float* out) {
    const int parts = is_exact ? 2 : 1;
    prepare(linear, is_exact ? with_rests(linear.k, x, rows) : x, rows * parts);
    const auto finish = [&](int row, int tile, Floats low, Floats high) {
      float* to = out + (int64_t)(row / parts) * linear.n;
      const auto put = [&](int column, Floats sums) {
        const int width = linear.n - column;
        if (width <= 0) return;
        if (row % parts != 0) sums = load_some(to + column, width) + sums;
        store_some(to + column, sums, width);
      };
      put(tile * kTileColumns, low);
      put(tile * kTileColumns + kLanes, high);
    };
    const int chunk = std::max(1, linear.tiles() / (4 * threads_.size()));
    std::atomic<int> next{0};
    threads_.run([&](int) {
      for (int first; (first = next.fetch_add(chunk)) < linear.tiles();)
        multiply_codes(linear.weights, linear.codes_tile(), integers_.data(), sums_.data(),
                       scales_.data(), rows * parts, first, std::min(first + chunk, linear.tiles()),
                       finish);
    });
  }

 private:
  // [rows][2][k]: each row, and what rounding it to 16 bits loses.
  const float* with_rests(int k, const float* x, int rows) {
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

  void prepare(const Linear& linear, const float* x, int rows) {
    const int k = linear.k, groups = linear.codes_tile().groups();
    grow(integers_, (int64_t)rows * padded(k));
    grow(scales_, rows);
    grow(sums_, (int64_t)rows * groups);
    std::atomic<int> next{0};
    const auto work = [&](int) {
      for (int group; (group = next.fetch_add(1)) < num_row_groups(rows);) {
        const int first = group * kRowGroup, width = rows_of_group(rows, first);
        int16_t* to = &integers_[(int64_t)first * padded(k)];
        quantize_rows(x + (int64_t)first * k, k, width, to, &scales_[first]);
        sum_groups(to, width, groups, linear.group_size, &sums_[(int64_t)first * groups]);
      }
    };
    if (num_row_groups(rows) == 1) return work(0);
    threads_.run(work);
  }

  Team threads_;
  std::vector<float> parts_;       // [rows][2][k]
  std::vector<int16_t> integers_;  // [row groups][padded k/2][rows of the group][2]
  std::vector<float> scales_;      // [rows]
  std::vector<int32_t> sums_;      // [row groups][groups][rows of the group]
};

// One layer's weight. A group has at most 128 inputs.
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
  const Linear& linear() const { return linear_; }

  void fill(Team& team, const CodesFormat& format, const CodesPart& part) {
    pack_codes(team, linear_, format, [&](int row) -> CodesRow {
      return {row < linear_.n ? &part : nullptr, row};
    });
  }

 private:
  size_t num_bytes() const { return (size_t)linear_.tiles() * linear_.tile_bytes(); }

  Linear linear_;
};

}  // namespace native
