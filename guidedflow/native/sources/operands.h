// What the kernels are handed and what they run on: matrices in memory, workspaces, XLA's threads.

#ifndef GUIDEDFLOW_OPERANDS_H_
#define GUIDEDFLOW_OPERANDS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace guidedflow {

namespace ffi = xla::ffi;

using Buffer = ffi::Buffer<ffi::F32>;
using Task = std::function<void(int64_t)>;

constexpr int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// A matrix in memory: element (i, k), k along the contraction, is at data[i * row + k * column].
struct Operand {
  const float* data;
  int64_t rows, depth, row, column;

  Operand Transposed() const { return {data, depth, rows, column, row}; }
  Operand Rows(int64_t begin, int64_t count) const {
    return {data + begin * row, count, depth, row, column};
  }
  Operand Depths(int64_t begin, int64_t count) const {
    return {data + begin * column, rows, count, row, column};
  }
};

// Memory that a thread keeps from one call to the next.
template <typename Number>
class Workspace {
 public:
  // At least `count` numbers; throws std::bad_alloc.
  Number* Get(int64_t count) {
    if (count > size_) {
      size_ = 0;
      data_.reset(static_cast<Number*>(std::aligned_alloc(64, RoundUp(count * sizeof(Number), 64))));
      if (!data_) throw std::bad_alloc();
      size_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(Number* data) const { std::free(data); }
  };
  std::unique_ptr<Number, Free> data_;
  int64_t size_ = 0;
};

// Runs task(0) to task(count - 1) on the pool and the caller, and returns when all are done; throws
// std::bad_alloc where one did.  The caller takes tasks itself, so that a pool whose threads all wait
// here cannot stand still.
inline void RunAll(ffi::ThreadPool pool, int64_t count, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0}, left;
    std::atomic<bool> lacked_memory{false};
    std::mutex mutex;
    std::condition_variable done;
  };
  auto shared = std::make_shared<Shared>();
  shared->left = count;
  // A helper that starts late finds nothing to take and touches nothing but `shared`.
  auto work = [shared, count, &task] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      try {
        task(i);
      } catch (const std::bad_alloc&) {
        shared->lacked_memory = true;
      }
      if (shared->left.fetch_sub(1) == 1) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->done.notify_all();
      }
    }
  };
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->done.wait(lock, [&] { return shared->left == 0; });
  if (shared->lacked_memory) throw std::bad_alloc();
}

}  // namespace guidedflow

#endif  // GUIDEDFLOW_OPERANDS_H_
