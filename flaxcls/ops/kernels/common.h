// What the kernels share: turns, threads, scratch memory and a bounded cache.
//
// XLA calls kernels from several threads at once, and each would start a team of OpenMP threads on
// the same cores. So they take turns: one kernel runs at a time, on all cores that the process has.

#pragma once

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace flaxcls {

namespace ffi = xla::ffi;

// Held by the kernel that runs.
inline std::mutex& turn() {
  static std::mutex mutex;
  return mutex;
}

inline int threads() { return omp_get_max_threads(); }

// Calls f(index) for each index below count, over the threads; which thread takes which does not
// depend on time, and no result on the number of threads.
template <class F>
void parallel(int64_t count, F f) {
#pragma omp parallel for schedule(static) num_threads(std::min<int64_t>(threads(), count))
  for (int64_t index = 0; index < count; ++index) f(index);
}

// Asks for huge pages where a kernel is about to write much. XLA takes memory from the system for
// each step and gives it back, so that a page fault in 4 KB would meet whatever is written.
inline void expect_writes(void* data, size_t bytes) {
  constexpr uintptr_t kHuge = 1 << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHuge - 1);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

// Memory that a kernel uses while it has its turn, kept for the next; as large as the largest need.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }

  template <class T>
  T* get(size_t count) {
    const size_t bytes = (std::max<size_t>(count * sizeof(T), 1) + 63) / 64 * 64;
    if (bytes > size_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      size_ = data_ ? bytes : 0;
      if (!data_) throw std::bad_alloc();
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// The values that were made last, by their keys; used while one has its turn.
template <class Value>
class Cache {
 public:
  explicit Cache(size_t most) : most_(most) {}

  template <class Make>
  Value& get(const std::string& key, Make make) {
    if (auto found = places_.find(key); found != places_.end()) {
      values_.splice(values_.begin(), values_, found->second);
      return values_.front().second;
    }
    values_.emplace_front(key, make());  // Where `make` throws, nothing has changed.
    places_[key] = values_.begin();
    if (values_.size() > most_) {
      places_.erase(values_.back().first);
      values_.pop_back();
    }
    return values_.front().second;
  }

 private:
  size_t most_;
  std::list<std::pair<std::string, Value>> values_;
  std::unordered_map<std::string, typename std::list<std::pair<std::string, Value>>::iterator>
      places_;
};

// Appends numbers, or spans of them, to a key.
inline void append_one(std::string& key, int64_t number) {
  key.append(reinterpret_cast<const char*>(&number), sizeof(number));
}

inline void append_one(std::string& key, ffi::Span<const int64_t> numbers) {
  for (int64_t number : numbers) append_one(key, number);
}

template <class... Values>
void append(std::string& key, const Values&... values) {
  (append_one(key, values), ...);
}

// Runs a kernel, which writes the results, in its turn; what it throws becomes the error of the
// program that called it.
template <class F, class... R>
ffi::Error in_turn(F kernel, R&... results) {
  (expect_writes(results->untyped_data(), results->size_bytes()), ...);
  try {
    std::lock_guard<std::mutex> guard(turn());
    kernel();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

}  // namespace flaxcls
