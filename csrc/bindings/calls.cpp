// What ops do around their kernels, where it would take longer in Python than a small kernel takes: arguments are unpacked,
// checked, and results made in one call.
#include <algorithm>
#include <utility>

#include "bindings/common.h"

namespace mg::bindings {
namespace {

PyObject* unpack_tensors(PyObject*, PyObject* const* given, Py_ssize_t number) {
  static const py::handle data = PyUnicode_InternFromString("data"), slot = PyUnicode_InternFromString("slot");
  if (number != 4 || !PyType_Check(given[0]) || !PyTuple_Check(given[1])) {
    PyErr_SetString(PyExc_TypeError, "unpack_tensors: expected Tensor, args, count, required");
    return nullptr;
  }
  PyTypeObject* const tensor = reinterpret_cast<PyTypeObject*>(given[0]);
  PyObject* const args = given[1];
  const Py_ssize_t size = PyTuple_GET_SIZE(args), count = PyLong_AsSsize_t(given[2]), required = PyLong_AsSsize_t(given[3]);
  if (PyErr_Occurred()) return nullptr;
  try {
    constexpr Py_ssize_t kMost = 16;
    if (count > kMost) throw py::type_error("unpack_tensors: at most 16 tensors");
    py::list arrays(size > count ? size : count);
    py::object slots[kMost];
    bool wanted = false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arrays.ptr()); ++i) {
      const py::handle value = i < size ? PyTuple_GET_ITEM(args, i) : Py_None;
      py::object array = py::reinterpret_borrow<py::object>(value);
      if (i < count && PyObject_TypeCheck(value.ptr(), tensor)) {
        array = value.attr(data);
        slots[i] = value.attr(slot);
        wanted |= !slots[i].is_none();
      } else if (i < count && !(value.is_none() && i >= required)) {
        Py_RETURN_NONE;
      }
      PyList_SET_ITEM(arrays.ptr(), i, array.release().ptr());
    }
    if (!wanted) return PyTuple_Pack(3, arrays.ptr(), Py_None, Py_None);
    py::list inputs(count), needs(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      const bool need = slots[i] && !slots[i].is_none();
      PyList_SET_ITEM(needs.ptr(), i, py::bool_(need).release().ptr());
      PyList_SET_ITEM(inputs.ptr(), i, (need ? std::move(slots[i]) : py::none()).release().ptr());
    }
    return PyTuple_Pack(3, arrays.ptr(), inputs.ptr(), needs.ptr());
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

[[noreturn]] void refuse(const char* op, const char* argument, const std::string& expected, const Array& got) {
  throw shape_error(std::string(op) + ": `" + argument + "` expected " + expected + ", got " +
                    shape_text(got.shape, got.rank));
}
void check_shape(const Array* array, const int64_t* shape, int rank, const char* op, const char* argument) {
  if (array && !(array->rank == rank && std::equal(shape, shape + rank, array->shape)))
    refuse(op, argument, shape_text(shape, rank), *array);
}

// A tuple of the arrays; None for those that were not made.
template <class... Arrays> py::tuple results(Arrays&&... arrays) {
  py::tuple tuple(sizeof...(Arrays));
  Py_ssize_t at = 0;
  ((PyTuple_SET_ITEM(tuple.ptr(), at, arrays.data ? wrap(std::move(arrays)) : py::none().release().ptr()), ++at), ...);
  return tuple;
}

// -> (y, what the activation's backward needs or None). `keep`: a gradient will be asked for.
py::tuple linear(const Array& x, const Array& weight, const Array* bias, const Array* residual, int act, bool wide_out,
                 bool keep) {
  const std::pair<const char*, const Array*> given[] = {
      {"x", &x}, {"weight", &weight}, {"bias", bias}, {"residual", residual}};
  for (const auto& [name, array] : given) check_like(array, "linear", name, x, "x");
  if (weight.rank != 2) refuse("linear", "weight", "two axes (out, in)", weight);
  const int64_t n = weight.dim(0), inner = weight.dim(1);
  if (x.rank == 0 || x.dim(-1) != inner) refuse("linear", "x", "(..., " + std::to_string(inner) + ")", x);
  check_shape(bias, &n, 1, "linear", "bias");
  int64_t shape[kMaxRank], rows = 1;
  for (int axis = 0; axis < x.rank - 1; ++axis) rows = checked_mul(rows, shape[axis] = x.dim(axis));
  shape[x.rank - 1] = n;
  check_shape(residual, shape, x.rank, "linear", "residual");
  Array y, pre;
  by_dtype(x, "linear", [&](auto t) {
    using T = decltype(t);
    y = make_array(wide_out ? dtype_of<Wide<T>>::value : x.dtype, shape, x.rank);
    if (keep && act) pre = make_array(x.dtype, shape, x.rank);
    GemmArgs<T> args{};
    args.a = x.as<T>(), args.b = weight.as<T>();
    if (y.dtype == x.dtype) args.c = y.as<T>();
    else args.wide_c = y.as<Wide<T>>();
    args.bias = bias ? bias->as<T>() : nullptr, args.residual = residual ? residual->as<T>() : nullptr;
    args.pre = pre.as<T>();
    args.m = rows, args.n = n, args.k = inner, args.lda = inner, args.ldb = inner, args.ldc = n;
    args.batch = 1, args.trans_b = 1, args.act = (Act)act;
    MG_RUN(gemm, T, args, &x, &weight, &y, bias, residual, &pre);
  });
  return results(std::move(y), std::move(pre));
}

// -> (y, mean or None, rstd) of layer_norm, or of rms_norm.
py::tuple normalize(const Array& x, const Array* weight, const Array* bias, double eps, bool center) {
  const char* op = center ? "layer_norm" : "rms_norm";
  const std::pair<const char*, const Array*> given[] = {{"x", &x}, {"weight", weight}, {"bias", bias}};
  for (const auto& [name, array] : given) check_like(array, op, name, x, "x");
  const int64_t cols = x.rank ? x.dim(-1) : 0;
  if (cols < 1) refuse(op, "x", "a last axis of at least 1", x);
  check_shape(weight, &cols, 1, op, "weight");
  check_shape(bias, &cols, 1, op, "bias");
  const int64_t rows = x.size / cols;
  Array y, mean, rstd;
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    y = make_array(x.dtype, x.shape, x.rank);
    rstd = make_array(dtype_of<Wide<T>>::value, &rows, 1);
    if (center) mean = make_array(dtype_of<Wide<T>>::value, &rows, 1);
    const NormArgs<T> args{x.as<T>(), weight ? weight->as<T>() : nullptr, bias ? bias->as<T>() : nullptr, y.as<T>(),
                           mean.as<Wide<T>>(), rstd.as<Wide<T>>(), rows, cols, eps, center};
    MG_RUN(norm, T, args, &x, weight, bias, &y, &mean, &rstd);
  });
  return results(std::move(y), std::move(mean), std::move(rstd));
}

}  // namespace

void register_calls(py::module_& m) {
  static PyMethodDef methods[] = {
      {"unpack_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&unpack_tensors)), METH_FASTCALL,
       "unpack_tensors(tensor: type, args: tuple[typing.Any, ...], count: int, required: int) -> "
       "tuple[list[typing.Any], list[typing.Any] | None, list[bool] | None] | None\n\n"
       "Arrays of all arguments, and if any of the first `count` has a slot, their slots and which have one. Those from\n"
       "`required` on may be None or missing. None unless the others are tensors."},
      {},
  };
  if (PyModule_AddFunctions(m.ptr(), methods) < 0) throw py::error_already_set();
  define<&linear>(m, "linear", py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("act"),
                  py::arg("wide_out"), py::arg("keep"), "(y, pre or None) of residual + act(x weight^T + bias)");
  define<&normalize>(m, "normalize", py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("center"),
                     "(y, mean or None, rstd) of layer_norm if `center`, else of rms_norm");
}

}  // namespace mg::bindings
