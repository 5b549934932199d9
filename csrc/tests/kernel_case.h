// One kernel against its reference: the same numbers in float and in double, outputs between guards, every compiled
// target, shares forwards and backwards.
#pragma once
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/plan.h"
#include "ref/ref.h"
#include "targets/dispatch.h"

namespace mg::test {

constexpr double kU = 1.0 / (1 << 24);  // unit roundoff of float
constexpr float kGuard = -7.5e33f;
constexpr int64_t kGuardFloats = 64;
// Around every vector width and share boundary.
constexpr int64_t kSizes[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 1000, 16384, 16385, 40000};
constexpr int64_t kShortSizes[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 200};

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull) {}
  uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  }
  double uniform(double low, double high) { return low + (high - low) * (double)(next() >> 11) / 9007199254740992.0; }
};

// Inputs are exactly as long as they say, so that the address sanitizer sees a read too far; outputs lie between guards.
class Buffer {
 public:
  static Buffer input(int64_t n, uint64_t seed, double low = -2.0, double high = 2.0) { return {n, 0, seed, low, high}; }
  static Buffer output(int64_t n, uint64_t seed = 99) { return {n, kGuardFloats, seed, -2.0, 2.0}; }
  static Buffer of(std::vector<float> values, bool guarded = false) {
    Buffer buffer((int64_t)values.size(), guarded ? kGuardFloats : 0, 1, 0.0, 0.0);
    buffer.initial_ = std::move(values);
    buffer.reset();
    return buffer;
  }
  void reset() {
    reset_narrow();
    wide_.assign(initial_.begin(), initial_.end());
  }
  void reset_narrow() { std::copy(initial_.begin(), initial_.end(), narrow_.begin() + guard_); }
  void set(int64_t i, float value) { initial_[(size_t)i] = value, reset(); }
  template <class T> T* as() {
    if constexpr (sizeof(T) == sizeof(float)) return size() ? narrow_.data() + guard_ : nullptr;
    else return wide_.data();
  }
  int64_t size() const { return (int64_t)initial_.size(); }
  float initial(int64_t i) const { return initial_[(size_t)i]; }
  float narrow(int64_t i) const { return narrow_[(size_t)(guard_ + i)]; }
  double wide(int64_t i) const { return wide_[(size_t)i]; }
  const std::vector<float>& values() const { return initial_; }
  const std::vector<float>& all() const { return narrow_; }  // with the guards
  bool guards_hold() const {
    for (int64_t i = 0; i < guard_; ++i)
      if (narrow_[(size_t)i] != kGuard || narrow_[narrow_.size() - 1 - (size_t)i] != kGuard) return false;
    return true;
  }

 private:
  Buffer(int64_t n, int64_t guard, uint64_t seed, double low, double high)
      : guard_(guard), initial_((size_t)n), narrow_((size_t)(n + 2 * guard), kGuard) {
    Random random(seed);
    for (float& v : initial_) v = (float)random.uniform(low, high);
    reset();
  }
  int64_t guard_;
  std::vector<float> initial_, narrow_;
  std::vector<double> wide_;
};

// |ours - reference| <= relative * |reference| + absolute. NaN must meet NaN, infinity the same infinity.
struct Tolerance {
  double relative, absolute;
};
// One for all outputs, or one for each.
struct Tolerances {
  std::vector<Tolerance> each;
  Tolerances(Tolerance one) : each{one} {}
  Tolerances(std::initializer_list<Tolerance> list) : each(list) {}
  Tolerance operator[](size_t i) const { return each[each.size() == 1 ? 0 : i]; }
};

// The first element out of tolerance, in words; "" if there is none.
inline std::string difference(const Buffer& out, Tolerance tolerance) {
  for (int64_t i = 0; i < out.size(); ++i) {
    const double ours = out.narrow(i), right = out.wide(i);
    if (std::isnan(right) ? std::isnan(ours) : ours == right) continue;
    if (std::isfinite(ours) && std::fabs(ours - right) <= tolerance.relative * std::fabs(right) + tolerance.absolute) continue;
    return "element " + std::to_string(i) + ": " + std::to_string(ours) + ", reference " + std::to_string(right) +
           ", off by " + std::to_string(std::fabs(ours - right) / kU) + " u";
  }
  return "";
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Scratch is as long as the plan says and holds NaN before each share.
template <class Args> void run_shares(void (*kernel)(const Args&, const Share&), const Args& args, Plan plan, bool backwards) {
  for (int64_t i = 0; i < plan.shares; ++i) {
    std::vector<unsigned char> scratch(plan.scratch_bytes, 0xff);
    kernel(args, Share{backwards ? plan.shares - 1 - i : i, plan.shares, scratch.empty() ? nullptr : scratch.data()});
  }
}

// make(float()) and make(double()) give the arguments for the buffers as they are; use it by CHECK_KERNEL.
template <class Narrow, class Wide, class PlanOf, class Make>
void check_kernel(const char* name, Narrow narrow, Wide wide, PlanOf plan_of, const Make& make,
                  const std::vector<Buffer*>& outputs, const Tolerances& tolerances) {
  for (Buffer* out : outputs) out->reset();
  run_shares(reference_table().*wide, make(double()), plan_of(make(double())), false);
  for (const Target& target : targets()) {
    if (!target.supported) continue;
    INFO(std::string(name) << " on " << std::string(target.name));
    std::vector<std::vector<float>> backward_bits;
    for (const bool backwards : {true, false}) {
      for (Buffer* out : outputs) out->reset_narrow();
      const auto args = make(float());
      run_shares((*target.table()).*narrow, args, plan_of(args), backwards);
      if (backwards)
        for (Buffer* out : outputs) backward_bits.push_back(out->all());
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      INFO("output " << i);
      CHECK(same_bits(backward_bits[i], outputs[i]->all()));
      CHECK(outputs[i]->guards_hold());
      CHECK(difference(*outputs[i], tolerances[i]) == "");
    }
  }
}

#define CHECK_KERNEL(name, make, tolerances, ...)                                                      \
  mg::test::check_kernel(#name, &mg::KernelTable<float>::name, &mg::KernelTable<double>::name,         \
                         [](const auto& args) { return mg::plan_##name(args); }, make, {__VA_ARGS__}, tolerances)

}  // namespace mg::test
