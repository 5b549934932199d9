// Arrays of tests: an access of what lies beside one ends the address sanitizer's run. A write there is found afterwards in any
// build, and what is read there is NaN.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define MG_POISONED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MG_POISONED
#endif
#endif
#ifdef MG_POISONED
#include <sanitizer/asan_interface.h>
#endif

namespace mg::test {

template <class T> class Guarded {
 public:
  explicit Guarded(int64_t size) : size_(static_cast<size_t>(size)), memory_(bytes() + 2 * kBeside + kAlign, kByte) {
    unsigned char* begin = memory_.data() + kBeside;
    begin += (kAlign - reinterpret_cast<uintptr_t>(begin) % kAlign) % kAlign;
    data_ = reinterpret_cast<T*>(begin);
    poison();
  }
  template <class Number> explicit Guarded(const std::vector<Number>& x) : Guarded(static_cast<int64_t>(x.size())) {
    std::copy(x.begin(), x.end(), data_);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { unpoison(); }

  T* data() { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  void forget() { std::memset(static_cast<void*>(data_), kByte, bytes()); }
  bool same_bits(const Guarded& other) const { return std::memcmp(data_, other.data_, bytes()) == 0; }
  // Nothing was written beside it; the sanitizer does not see what tiles read and write.
  bool intact() const {
    const auto fine = [](unsigned char byte) { return byte == kByte; };
    const auto begin = memory_.begin() + static_cast<std::ptrdiff_t>(before());
    unpoison();
    const bool all = std::all_of(memory_.begin(), begin, fine) &&
                     std::all_of(begin + static_cast<std::ptrdiff_t>(bytes()), memory_.end(), fine);
    poison();
    return all;
  }

 private:
  static constexpr size_t kBeside = 256, kAlign = 64;
  static constexpr unsigned char kByte = 0xFF;
  void poison() const {
#ifdef MG_POISONED
    ASAN_POISON_MEMORY_REGION(memory_.data(), before());
    ASAN_POISON_MEMORY_REGION(memory_.data() + before() + bytes(), memory_.size() - before() - bytes());
#endif
  }
  void unpoison() const {
#ifdef MG_POISONED
    ASAN_UNPOISON_MEMORY_REGION(memory_.data(), memory_.size());
#endif
  }
  size_t bytes() const { return size_ * sizeof(T); }
  size_t before() const { return static_cast<size_t>(reinterpret_cast<const unsigned char*>(data_) - memory_.data()); }

  size_t size_;
  std::vector<unsigned char> memory_;
  T* data_;
};

}  // namespace mg::test
