// The Python type of an Array: a plain C object, because every op makes and drops at least one. pybind11's instances cost
// a heap allocation and an entry in a table each; its functions take an Array all the same, by the caster below.
#pragma once
#include <pybind11/pybind11.h>

#include "core/array.h"

namespace mg::bindings {

namespace py = pybind11;

struct ArrayObject {
  PyObject_HEAD
  Array array;
  PyObject* shape;  // the tuple, once it was asked for
};
extern PyTypeObject* array_type;  // not to be subclassed, so that identity of the type is the whole check

py::object make_array_type(py::module_& m);  // adds it to the module; methods are set on the result
PyObject* wrap(Array&& array);               // a new reference
inline Array* unwrap(PyObject* object) {
  return Py_TYPE(object) == array_type ? &reinterpret_cast<ArrayObject*>(object)->array : nullptr;
}

}  // namespace mg::bindings

namespace pybind11::detail {

template <> struct type_caster<mg::Array> {
  static constexpr auto name = const_name("microgpt._kernels.Array");
  template <class T> using cast_op_type = pybind11::detail::cast_op_type<T>;
  operator mg::Array*() { return value_; }
  operator mg::Array&() {
    if (!value_) throw reference_cast_error();
    return *value_;
  }
  bool load(handle source, bool) {
    value_ = mg::bindings::unwrap(source.ptr());
    return value_ || source.is_none();
  }
  static handle cast(mg::Array&& array, return_value_policy, handle) { return mg::bindings::wrap(std::move(array)); }

 private:
  mg::Array* value_ = nullptr;
};

}  // namespace pybind11::detail
