// Array: element type, shape and a stretch of a pool block. Always contiguous, row-major, at least item-aligned.
#pragma once
#include <stdint.h>
#include <memory>
#include <string>

#include "core/dtype.h"

namespace mg {

constexpr int kMaxRank = 8;

// Memory with an owner: releasing the last reference gives it back to its pool or to whoever lent it.
using Block = std::shared_ptr<void>;

struct Array {
  DType dtype = DType::f32;
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t size = 1;
  char* data = nullptr;
  Block block;
  bool writable = true;

  template <class T> T* as() const { return reinterpret_cast<T*>(data); }
  size_t bytes() const { return (size_t)size * item_size(dtype); }
  int64_t dim(int axis) const { return shape[axis < 0 ? axis + rank : axis]; }
};

// An array that a kernel's arguments point into, or none. What is written (`to`) shares no memory with the others, except with
// one that is read element by element (`each`) and is the very same memory.
struct Use {
  enum Kind { read, each, written };
  const Array* array;
  Kind kind;
  Use(const Array* array, Kind kind = read) : array(array), kind(kind) {}
};

// Contents undefined; from the calling thread's current pool. Throws shape_error on overflow or a negative size.
Array make_array(DType dtype, const int64_t* shape, int rank);
// The same memory seen with another shape, from element `offset` on. Throws shape_error unless it fits.
Array view_array(const Array& base, int64_t offset, const int64_t* shape, int rank);
// Arrays that follow each other in one block as one, whose first axis is theirs together; no data where they do not.
Array joined_array(const Array* const* arrays, size_t count);
std::string shape_text(const int64_t* shape, int rank);  // "(2, 3)"

}  // namespace mg
