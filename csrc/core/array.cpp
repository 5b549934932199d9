#include "core/array.h"

#include "core/checked.h"
#include "runtime/pool.h"

namespace mg {

size_t item_size(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32: return 4;
    case DType::f64:
    case DType::i64: return 8;
    case DType::bf16: return 2;
    case DType::u8: return 1;
  }
  return 0;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::i32: return "int32";
    case DType::i64: return "int64";
    case DType::u8: return "uint8";
    case DType::bf16: return "bfloat16";
  }
  return "unknown";
}

std::string shape_text(const int64_t* shape, int rank) {
  std::string text = "(";
  for (int i = 0; i < rank; ++i) text += std::to_string(shape[i]) + (i + 1 < rank ? ", " : rank == 1 ? "," : "");
  return text + ")";
}

namespace {

void set_shape(Array& array, const int64_t* shape, int rank) {
  if (rank > kMaxRank) throw shape_error("at most " + std::to_string(kMaxRank) + " axes, got " + std::to_string(rank));
  array.rank = rank;
  array.size = 1;
  for (int i = 0; i < rank; ++i) {
    if (shape[i] < 0) throw shape_error("negative size in shape " + shape_text(shape, rank));
    array.shape[i] = shape[i];
    array.size = checked_mul(array.size, shape[i]);
  }
}

}  // namespace

Array make_array(DType dtype, const int64_t* shape, int rank) {
  Array array;
  array.dtype = dtype;
  set_shape(array, shape, rank);
  const int64_t bytes = checked_mul(array.size, (int64_t)item_size(dtype));
  std::shared_ptr<Pool> pool = current_pool();
  void* memory = pool->take((size_t)bytes);
  array.data = static_cast<char*>(memory);
  // The deleter holds the pool, so a pool outlives every block of it.
  array.block = Block(memory, [pool](void* p) { pool->release(p); });
  return array;
}

Array view_array(const Array& base, int64_t offset, const int64_t* shape, int rank) {
  Array view = base;
  set_shape(view, shape, rank);
  if (offset < 0 || checked_add(offset, view.size) > base.size)
    throw shape_error("a view of shape " + shape_text(shape, rank) + " at element " + std::to_string(offset) +
                      " does not fit into " + std::to_string(base.size) + " elements");
  view.data = base.data + (size_t)offset * item_size(base.dtype);
  return view;
}

Array joined_array(const Array* const* arrays, size_t count) {
  const Array& first = *arrays[0];
  int64_t rows = 0;
  for (size_t i = 0; i < count; ++i) {
    const Array& each = *arrays[i];
    if (each.rank < 1 || each.rank != first.rank || each.dtype != first.dtype) return {};
    if (each.block != first.block || each.writable != first.writable) return {};
    for (int axis = 1; axis < each.rank; ++axis)
      if (each.shape[axis] != first.shape[axis]) return {};
    if (i > 0 && each.data != arrays[i - 1]->data + arrays[i - 1]->bytes()) return {};
    rows = checked_add(rows, each.shape[0]);
  }
  int64_t shape[kMaxRank];
  for (int axis = 0; axis < first.rank; ++axis) shape[axis] = first.shape[axis];
  shape[0] = rows;
  Array joined = first;
  set_shape(joined, shape, first.rank);
  return joined;
}

}  // namespace mg
