// A team of threads that runs one function on all members.

#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace native {

constexpr int kSpins = 4000;  // before a waiting thread offers its core to others

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

}  // namespace native
