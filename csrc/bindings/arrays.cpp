#include <pybind11/numpy.h>

#include <string.h>

#include <algorithm>
#include <vector>

#include "bindings/common.h"
#include "runtime/pool.h"

namespace mg::bindings {
namespace {

// Sizes from a number or any sequence of them, at most kMaxRank.
int to_shape(py::handle shape, int64_t* sizes) {
  auto number = [](py::handle size) {
    const long long value = PyLong_AsLongLong(size.ptr());
    if (value == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      throw shape_error("a shape must hold whole numbers, got " + py::repr(size).cast<std::string>());
    }
    return (int64_t)value;
  };
  if (PyLong_Check(shape.ptr())) {
    sizes[0] = number(shape);
    return 1;
  }
  if (!PyTuple_CheckExact(shape.ptr())) {  // of a list, or of a class of tuples: the plain tuple
    const py::list items(py::reinterpret_borrow<py::object>(shape));
    return to_shape(py::reinterpret_steal<py::object>(PyList_AsTuple(items.ptr())), sizes);
  }
  const Py_ssize_t rank = PyTuple_GET_SIZE(shape.ptr());
  if (rank > kMaxRank) throw shape_error("at most " + std::to_string(kMaxRank) + " axes");
  for (Py_ssize_t i = 0; i < rank; ++i) sizes[i] = number(PyTuple_GET_ITEM(shape.ptr(), i));
  return (int)rank;
}

DType to_dtype(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::u8})
    if (name == dtype_name(dtype)) return dtype;
  throw dtype_error("element type " + name + " is not supported; use float32, float64, bfloat16, int32, int64 or uint8");
}

// Names come from an array's dtype or from source code, interned both: one pointer comparison finds them.
DType to_dtype(py::handle name) {
  static PyObject* const interned[kDTypes] = {PyUnicode_InternFromString("float32"), PyUnicode_InternFromString("float64"),
                                              PyUnicode_InternFromString("int32"), PyUnicode_InternFromString("int64"),
                                              PyUnicode_InternFromString("uint8"), PyUnicode_InternFromString("bfloat16")};
  for (int i = 0; i < kDTypes; ++i)
    if (interned[i] == name.ptr()) return (DType)i;
  if (!PyUnicode_Check(name.ptr())) throw dtype_error(std::string("a type is given by its name, got ") + Py_TYPE(name.ptr())->tp_name);
  return to_dtype(name.cast<std::string>());
}

// By kind and size, not by name: feeding a buffer is on the path of every training step.
DType to_dtype(const py::dtype& dtype) {
  const char kind = dtype.kind();
  const py::ssize_t size = dtype.itemsize();
  if (kind == 'f' && size == 4) return DType::f32;
  if (kind == 'f' && size == 8) return DType::f64;
  if (kind == 'i' && size == 4) return DType::i32;
  if (kind == 'i' && size == 8) return DType::i64;
  if (kind == 'u' && size == 1) return DType::u8;
  return to_dtype(dtype.attr("name").cast<std::string>());
}

void refuse_while_recording(const char* what) {
  if (recording())
    throw recording_error(std::string(what) + ": data cannot be touched outside an op while a program is recorded; " +
                          "read or write it before or after, or use ops.custom");
}

// What NumPy says of an array, checked: native byte order, a known type, C-contiguous, aligned.
struct Checked {
  py::array array;
  DType dtype;
};

Checked check_numpy(const py::handle& value, bool allow_copy) {
  if (!py::isinstance<py::array>(value))
    throw dtype_error(std::string("expected a NumPy array, got ") + Py_TYPE(value.ptr())->tp_name);
  py::array array = py::reinterpret_borrow<py::array>(value);
  const py::dtype dtype = array.dtype();
  const char order = dtype.byteorder();
  if (order != '=' && order != '|')
    throw dtype_error("array has the other byte order (" + dtype.attr("str").cast<std::string>() +
                      "); convert it with .astype('" + dtype.attr("name").cast<std::string>() + "')");
  const DType type = to_dtype(dtype);
  const bool plain = (array.flags() & py::array::c_style) &&
                     (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_);
  if (!plain) {
    if (!allow_copy) throw shape_error("array is not C-contiguous and aligned; use numpy.ascontiguousarray");
    array = py::module_::import("numpy").attr("array")(array, py::arg("order") = "C", py::arg("copy") = true);
  }
  return {array, type};
}

Array copy_of(const py::handle& value) {
  const Checked checked = check_numpy(value, true);
  int64_t shape[kMaxRank];
  if (checked.array.ndim() > kMaxRank) throw shape_error("at most " + std::to_string(kMaxRank) + " axes");
  for (py::ssize_t i = 0; i < checked.array.ndim(); ++i) shape[i] = checked.array.shape(i);
  // A recording's constants come from outside its pool: what replays write to blocks that were free before must not
  // reach them.
  Program* const program = recording();
  const std::shared_ptr<Pool> pool = current_pool();
  if (program) set_current_pool(nullptr);
  Array array = make_array(checked.dtype, shape, (int)checked.array.ndim());
  if (program) set_current_pool(pool), program->hold(array);
  memcpy(array.data, checked.array.data(), array.bytes());
  return array;
}

// NumPy's type of the same elements; its bfloat16 comes from ml_dtypes.
py::dtype numpy_dtype(DType dtype) {
  if (dtype == DType::bf16) return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  return py::dtype(std::string(dtype_name(dtype)));
}

py::array to_numpy(const Array& array) {
  refuse_while_recording("numpy()");
  // The capsule owns a handle, so the memory lives as long as any view of it.
  auto* held = new Block(array.block);
  py::capsule owner(held, [](void* p) { delete static_cast<Block*>(p); });
  py::array view(numpy_dtype(array.dtype),
                 std::vector<py::ssize_t>(array.shape, array.shape + array.rank), array.data, owner);
  if (!array.writable) view.attr("setflags")(py::arg("write") = false);
  return view;
}

void copy_from(Array& array, const py::handle& value) {
  refuse_while_recording("copy_from()");
  if (!array.writable) throw usage_error("copy_from: the array is read-only");
  const Checked checked = check_numpy(value, true);
  if (checked.dtype != array.dtype)
    throw dtype_error(std::string("copy_from: expected ") + dtype_name(array.dtype) + ", got " +
                      dtype_name(checked.dtype));
  if (checked.array.size() != array.size)
    throw shape_error("copy_from: expected " + std::to_string(array.size) + " elements, got " +
                      std::to_string(checked.array.size()));
  memmove(array.data, checked.array.data(), array.bytes());  // it may be a view of the same memory
}

double item(const Array& array, int64_t index) {
  refuse_while_recording("item()");
  if (index < 0 || index >= array.size)
    throw shape_error("item: index " + std::to_string(index) + " of " + std::to_string(array.size) + " elements");
  switch (array.dtype) {
    case DType::f32: return array.as<float>()[index];
    case DType::f64: return array.as<double>()[index];
    case DType::i32: return array.as<int32_t>()[index];
    case DType::i64: return (double)array.as<int64_t>()[index];
    case DType::u8: return array.as<uint8_t>()[index];
    case DType::bf16: return value_of(array.as<bf16>()[index]);
  }
  return 0;
}

Array view(const Array& array, py::handle shape, int64_t offset) {
  int64_t sizes[kMaxRank];
  const int rank = to_shape(shape, sizes);
  return view_array(array, offset, sizes, rank);
}

// -> one array over several that follow each other in memory, or None.
py::object joined(py::handle arrays) {
  const py::tuple given(py::reinterpret_borrow<py::object>(arrays));
  std::vector<const Array*> each;
  for (py::handle array : given) {
    each.push_back(unwrap(array.ptr()));
    if (!each.back()) throw dtype_error(std::string("joined: expected arrays, got ") + Py_TYPE(array.ptr())->tp_name);
  }
  if (each.empty()) return py::none();
  Array made = joined_array(each.data(), each.size());
  return made.data ? py::reinterpret_steal<py::object>(wrap(std::move(made))) : py::none();
}

Array empty(py::handle shape, py::handle dtype) {
  int64_t sizes[kMaxRank];
  const int rank = to_shape(shape, sizes);
  return make_array(to_dtype(dtype), sizes, rank);
}

// NumPy's rule: aligned at the last axis, sizes must be equal or 1.
py::tuple broadcast_shape(const char* name, py::handle a, py::handle b) {
  int64_t x[kMaxRank], y[kMaxRank];
  const int x_rank = to_shape(a, x), y_rank = to_shape(b, y), rank = std::max(x_rank, y_rank);
  py::tuple shape(rank);
  for (int i = 1; i <= rank; ++i) {
    const int64_t p = i <= x_rank ? x[x_rank - i] : 1, q = i <= y_rank ? y[y_rank - i] : 1;
    if (p != q && p != 1 && q != 1)
      throw shape_error(std::string(name) + ": shapes " + shape_text(x, x_rank) + " and " + shape_text(y, y_rank) +
                        " do not broadcast");
    shape[(size_t)(rank - i)] = p == 1 ? q : p;
  }
  return shape;
}

Array empty_like(const Array& array) { return make_array(array.dtype, array.shape, array.rank); }

}  // namespace

void check_ids(const Array& ids, int64_t low, int64_t high, const char* op, const char* name, bool now) {
  const int32_t* p = in<int32_t>(&ids, ids.size, op, name);
  const auto check = [=, size = ids.size] {
    for (int64_t i = 0; i < size; ++i)
      if (p[i] < low || p[i] >= high)
        throw shape_error(std::string(op) + ": `" + name + "` must be in [" + std::to_string(low) + ", " +
                          std::to_string(high) + "), got " + std::to_string(p[i]) + " at position " + std::to_string(i));
  };
  check_each_time("ids", {&ids}, {low, high}, check, now);
}

int64_t check_starts(const Array& starts, int64_t rows, const char* op, const char* name, const char* unit) {
  if (starts.size < 1) throw shape_error(std::string(op) + ": `" + name + "` must not be empty");
  const int32_t* at = in<int32_t>(&starts, 1, op, name);
  const int64_t count = starts.size - 1;
  const auto check = [=] {
    if (at[0] != 0 || at[count] != rows)
      throw shape_error(std::string(op) + ": `" + name + "` must run from 0 to the " + std::to_string(rows) + " rows");
    for (int64_t i = 0; i < count; ++i)
      if (at[i + 1] < at[i]) throw shape_error(std::string(op) + ": `" + name + "` falls at " + unit + " " + std::to_string(i));
  };
  check_each_time("starts", {&starts}, {rows}, check);
  return count;
}

void register_arrays(py::module_& m) {
  py::object type = make_array_type(m);
  auto method = [&](const char* name, py::cpp_function function) { type.attr(name) = function; };
  define_method<&view>(type, "view", py::arg("self"), py::arg("shape"), py::arg("offset") = 0,
                       "The same memory with another shape, from element `offset` on.");
  method("numpy", py::cpp_function(&to_numpy, py::name("numpy"), py::is_method(type), "A NumPy view of the same memory."));
  method("item", py::cpp_function(&item, py::name("item"), py::is_method(type), py::arg("index") = 0));
  method("copy_from", py::cpp_function(&copy_from, py::name("copy_from"), py::is_method(type), py::arg("values"),
                                       "Overwrite with the elements of a NumPy array of the same type."));
  define<&empty>(m, "empty", py::arg("shape"), py::arg("dtype") = "float32", "An array with undefined contents.");
  define<&empty_like>(m, "empty_like", py::arg("array"));
  m.def("joined", &joined, py::arg("arrays"),
        "One array over several that follow each other in one block, their first axes as one; None where they do not.");
  define<&broadcast_shape>(m, "broadcast_shape", py::arg("name"), py::arg("a"), py::arg("b"),
                           "NumPy's broadcasting rule for two shapes. Raises ShapeError naming the op.");
  m.def("from_numpy", &copy_of, py::arg("values"), "A copy of a NumPy array (any strides, native byte order).");
}

}  // namespace mg::bindings
