// The floating-point environment that kernels compute in: round to nearest, keep denormals, no traps. The caller may have
// set another one for itself, and workers inherit whatever the thread that started them had.
#pragma once
#include <stdint.h>

namespace mg {

#if defined(__x86_64__) || defined(_M_X64)
using FloatState = uint32_t;  // MXCSR
constexpr FloatState kFloatControl = 0xffc0, kFloatDefault = 0x1f80;
inline FloatState float_state() { return __builtin_ia32_stmxcsr(); }
inline void set_float_state(FloatState state) { __builtin_ia32_ldmxcsr(state); }
#elif defined(__aarch64__)
using FloatState = uint64_t;  // FPCR
constexpr FloatState kFloatControl = ~(FloatState)0, kFloatDefault = 0;
inline FloatState float_state() {
  FloatState state;
  __asm__ volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
inline void set_float_state(FloatState state) { __asm__ volatile("msr fpcr, %0" : : "r"(state)); }
#else
using FloatState = uint32_t;
constexpr FloatState kFloatControl = 0, kFloatDefault = 0;
inline FloatState float_state() { return 0; }
inline void set_float_state(FloatState) {}
#endif

// While it lives, the calling thread computes in the default environment; afterwards the caller's is as it was. Costs one
// read of the register unless there is something to change.
class DefaultFloats {
 public:
  DefaultFloats() : before_(float_state()) {
    if (changed()) set_float_state(kFloatDefault);
  }
  ~DefaultFloats() {
    if (changed()) set_float_state(before_);
  }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
  bool changed() const { return (before_ & kFloatControl) != kFloatDefault; }
  FloatState before_;
};

}  // namespace mg
