// What every op does with its arguments before anything else (ops/op.py), for all of them at once.
#include "bindings/common.h"

namespace mg::bindings {
namespace {

PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

// unpack_tensors(Tensor, args, count, required): arrays and slots of the first `count` of `args`. Those from `required` on may
// be None, or missing at the end.
PyObject* unpack_tensors(PyObject*, PyObject* const* given, Py_ssize_t number) {
  static PyObject *const data = interned("data"), *const slot = interned("slot");
  if (number != 4 || !PyType_Check(given[0]) || !PyTuple_Check(given[1])) {
    PyErr_SetString(PyExc_TypeError, "unpack_tensors: expected Tensor, args, count, required");
    return nullptr;
  }
  PyTypeObject* const tensor = reinterpret_cast<PyTypeObject*>(given[0]);
  PyObject* const args = given[1];
  const Py_ssize_t size = PyTuple_GET_SIZE(args), count = PyLong_AsSsize_t(given[2]), required = PyLong_AsSsize_t(given[3]);
  if (PyErr_Occurred()) return nullptr;
  try {
    py::list arrays(size > count ? size : count), slots(count), needs(count);
    bool wanted = false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arrays.ptr()); ++i) {
      PyObject* const value = i < size ? PyTuple_GET_ITEM(args, i) : Py_None;
      PyObject *array = value, *of = Py_None;
      Py_INCREF(value);
      if (i < count) {
        if (PyObject_TypeCheck(value, tensor)) {
          Py_DECREF(value);
          array = PyObject_GetAttr(value, data);
          of = array ? PyObject_GetAttr(value, slot) : nullptr;
          if (!of) {
            Py_XDECREF(array);
            return nullptr;
          }
        } else if (value == Py_None && i >= required) {
          Py_INCREF(of);
        } else {
          Py_DECREF(value);
          Py_RETURN_NONE;
        }
        wanted |= of != Py_None;
        PyList_SET_ITEM(slots.ptr(), i, of);
        PyList_SET_ITEM(needs.ptr(), i, py::bool_(of != Py_None).release().ptr());
      }
      PyList_SET_ITEM(arrays.ptr(), i, array);
    }
    PyObject* const asked = wanted ? needs.ptr() : Py_None;
    return PyTuple_Pack(3, arrays.ptr(), slots.ptr(), asked);
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

}  // namespace

void register_calls(py::module_& m) {
  static PyMethodDef methods[] = {
      {"unpack_tensors", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&unpack_tensors)), METH_FASTCALL,
       "unpack_tensors(tensor: type, args: tuple[typing.Any, ...], count: int, required: int) -> "
       "tuple[list[typing.Any], list[typing.Any], list[bool] | None] | None\n\n"
       "Arrays of all arguments, slots of the first `count`, and which of these have one, None if none has. Arguments from\n"
       "`required` on may be None or missing. None unless the others are tensors."},
      {},
  };
  if (PyModule_AddFunctions(m.ptr(), methods) < 0) throw py::error_already_set();
}

}  // namespace mg::bindings
