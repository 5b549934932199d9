// Size arithmetic that refuses to wrap. Used wherever a size comes from outside the core.
#pragma once
#include <stdint.h>
#include <string>

#include "core/error.h"

namespace mg {

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t r;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &r))
    throw shape_error("size overflow: " + std::to_string(a) + " x " + std::to_string(b));
  return r;
}

inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_add_overflow(a, b, &r))
    throw shape_error("size overflow: " + std::to_string(a) + " + " + std::to_string(b));
  return r;
}

}  // namespace mg
