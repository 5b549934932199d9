#include <pybind11/numpy.h>

#include <string.h>

#include "bindings/common.h"

namespace mg::bindings {
namespace {

int to_shape(const py::handle& shape, int64_t* sizes) {
  if (py::isinstance<py::int_>(shape)) {
    sizes[0] = shape.cast<int64_t>();
    return 1;
  }
  int rank = 0;
  for (py::handle size : shape) {
    if (rank == kMaxRank) throw shape_error("at most " + std::to_string(kMaxRank) + " axes");
    try {
      sizes[rank++] = size.cast<int64_t>();
    } catch (const py::cast_error&) {
      throw shape_error("a shape must hold whole numbers, got " + py::repr(size).cast<std::string>());
    }
  }
  return rank;
}

DType to_dtype(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::u8})
    if (name == dtype_name(dtype)) return dtype;
  throw dtype_error("element type " + name + " is not supported; use float32, float64, bfloat16, int32, int64 or uint8");
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
  Array array = make_array(checked.dtype, shape, (int)checked.array.ndim());
  memcpy(array.data, checked.array.data(), array.bytes());
  if (Program* program = recording()) program->hold(array);
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
  memcpy(array.data, checked.array.data(), array.bytes());
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

py::tuple shape_of(const Array& array) {
  py::tuple shape(array.rank);
  for (int i = 0; i < array.rank; ++i) shape[i] = array.shape[i];
  return shape;
}

}  // namespace

void check_ids(const Array& ids, int64_t low, int64_t high, const char* op, const char* name) {
  const int32_t* p = in<int32_t>(&ids, ids.size, op, name);
  for (int64_t i = 0; i < ids.size; ++i)
    if (p[i] < low || p[i] >= high)
      throw shape_error(std::string(op) + ": `" + name + "` must be in [" + std::to_string(low) + ", " +
                        std::to_string(high) + "), got " + std::to_string(p[i]) + " at position " + std::to_string(i));
}

void register_arrays(py::module_& m) {
  py::class_<Array>(m, "Array", "A contiguous block of numbers owned by the pool.")
      .def_property_readonly("shape", &shape_of)
      .def_property_readonly("dtype", [](const Array& a) { return dtype_name(a.dtype); })
      .def_readonly("size", &Array::size)
      .def_readonly("ndim", &Array::rank)
      .def_property_readonly("nbytes", [](const Array& a) { return (int64_t)a.bytes(); })
      .def_property_readonly("address", [](const Array& a) { return (uintptr_t)a.data; })
      .def("numpy", &to_numpy, "A NumPy view of the same memory.")
      .def("item", &item, py::arg("index") = 0)
      .def("copy_from", &copy_from, py::arg("values"), "Overwrite with the elements of a NumPy array of the same type.")
      .def("view",
           [](const Array& a, const py::handle& shape, int64_t offset) {
             int64_t sizes[kMaxRank];
             const int rank = to_shape(shape, sizes);
             return view_array(a, offset, sizes, rank);
           },
           py::arg("shape"), py::arg("offset") = 0, "The same memory with another shape, from element `offset` on.")
      .def("__repr__", [](const Array& a) {
        return "Array(" + shape_text(a.shape, a.rank) + ", " + dtype_name(a.dtype) + ")";
      });
  m.def("empty",
        [](const py::handle& shape, const std::string& dtype) {
          int64_t sizes[kMaxRank];
          const int rank = to_shape(shape, sizes);
          return make_array(to_dtype(dtype), sizes, rank);
        },
        py::arg("shape"), py::arg("dtype") = "float32", "An array with undefined contents.");
  m.def("empty_like", [](const Array& a) { return make_array(a.dtype, a.shape, a.rank); }, py::arg("array"));
  m.def("from_numpy", &copy_of, py::arg("values"), "A copy of a NumPy array (any strides, native byte order).");
  m.def("check_ids",
        [](const Array& ids, int64_t low, int64_t high, const std::string& op, const std::string& name) {
          check_ids(ids, low, high, op.c_str(), name.c_str());
        },
        py::arg("ids"), py::arg("low"), py::arg("high"), py::arg("op"), py::arg("name"),
        "Raise ShapeError unless every int32 id is in [low, high).");
}

}  // namespace mg::bindings
