#include "bindings/array_object.h"

#include <new>

#include "bindings/function.h"

namespace mg::bindings {

PyTypeObject* array_type = nullptr;

namespace {

Array& array_of(PyObject* self) { return reinterpret_cast<ArrayObject*>(self)->array; }

void dealloc(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  auto* const object = reinterpret_cast<ArrayObject*>(self);
  object->array.~Array();
  Py_XDECREF(object->shape);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* shape(PyObject* self, void*) {
  auto* const object = reinterpret_cast<ArrayObject*>(self);
  if (!object->shape) {
    const Array& array = object->array;
    PyObject* const tuple = PyTuple_New(array.rank);
    if (!tuple) return nullptr;
    for (int axis = 0; axis < array.rank; ++axis) {
      PyObject* const size = PyLong_FromLongLong(array.shape[axis]);
      if (!size) {
        Py_DECREF(tuple);
        return nullptr;
      }
      PyTuple_SET_ITEM(tuple, axis, size);
    }
    object->shape = tuple;
  }
  return Py_NewRef(object->shape);
}

PyObject* dtype(PyObject* self, void*) {
  static PyObject* names[kDTypes];  // interned: comparisons in Python find the same object
  const DType dtype = array_of(self).dtype;
  PyObject*& name = names[(int)dtype];
  if (!name) name = PyUnicode_InternFromString(dtype_name(dtype));
  return Py_XNewRef(name);
}

PyObject* size(PyObject* self, void*) { return PyLong_FromLongLong(array_of(self).size); }
PyObject* ndim(PyObject* self, void*) { return PyLong_FromLong(array_of(self).rank); }
PyObject* nbytes(PyObject* self, void*) { return PyLong_FromSize_t(array_of(self).bytes()); }
PyObject* address(PyObject* self, void*) { return PyLong_FromVoidPtr(array_of(self).data); }

PyObject* repr(PyObject* self) {
  const Array& array = array_of(self);
  return PyUnicode_FromFormat("Array(%s, %s)", shape_text(array.shape, array.rank).c_str(), dtype_name(array.dtype));
}

// The first line is the type, for the stub (tools/stub.py).
PyGetSetDef properties[] = {
    {"shape", shape, nullptr, "tuple[int, ...]\n\nSizes of the axes.", nullptr},
    {"dtype", dtype, nullptr, "str\n\nNumPy's name of the element type.", nullptr},
    {"size", size, nullptr, "int\n\nNumber of elements.", nullptr},
    {"ndim", ndim, nullptr, "int\n\nNumber of axes.", nullptr},
    {"nbytes", nbytes, nullptr, "int\n\nBytes of the elements.", nullptr},
    {"address", address, nullptr, "int\n\nWhere the first element lies.", nullptr},
    {},
};

PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
    {Py_tp_repr, reinterpret_cast<void*>(repr)},
    {Py_tp_getset, properties},
    {Py_tp_doc, const_cast<char*>("A contiguous block of numbers owned by the pool.")},
    {0, nullptr},
};

PyType_Spec spec = {"microgpt._kernels.Array", sizeof(ArrayObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

}  // namespace

PyObject* wrap(Array&& array) {
  auto* const object = reinterpret_cast<ArrayObject*>(array_type->tp_alloc(array_type, 0));
  if (!object) throw py::error_already_set();
  new (&object->array) Array(std::move(array));
  object->shape = nullptr;
  return reinterpret_cast<PyObject*>(object);
}

py::object make_array_type(py::module_& m) {
  py::object type = py::reinterpret_steal<py::object>(PyType_FromModuleAndSpec(m.ptr(), &spec, nullptr));
  if (!type) throw py::error_already_set();
  array_type = reinterpret_cast<PyTypeObject*>(type.ptr());
  type.inc_ref();  // for good
  m.attr("Array") = type;
  return type;
}

}  // namespace mg::bindings
