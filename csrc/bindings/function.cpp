#include "bindings/function.h"

#include <new>

#include "core/error.h"

namespace mg::bindings {

void arrange(const Signature& signature, PyObject* const* given, Py_ssize_t positional, PyObject* keywords,
             PyObject** values) {
  const size_t count = signature.count, first = (size_t)positional;
  if (first > count)
    throw py::type_error(std::string(signature.name) + ": at most " + std::to_string(count) + " arguments, got " +
                         std::to_string(first));
  for (size_t i = 0; i < first; ++i) values[i] = given[i];
  for (size_t i = first; i < count; ++i) values[i] = nullptr;
  const Py_ssize_t named = keywords ? PyTuple_GET_SIZE(keywords) : 0;
  for (Py_ssize_t k = 0; k < named; ++k) {
    PyObject* const keyword = PyTuple_GET_ITEM(keywords, k);
    // Keywords in source code are interned as ours are: the pointers are equal. Others are compared.
    size_t i = first;
    while (i < count && signature.names[i] != keyword) ++i;
    if (i == count)
      for (i = 0; i < count && PyUnicode_Compare(signature.names[i], keyword) != 0;) ++i;
    if (i == count)
      throw py::type_error(std::string(signature.name) + ": no argument `" + PyUnicode_AsUTF8(keyword) + "`");
    if (values[i])
      throw py::type_error(std::string(signature.name) + ": `" + PyUnicode_AsUTF8(keyword) + "` was given twice");
    values[i] = given[positional + k];
  }
  for (size_t i = first; i < count; ++i) {
    if (values[i]) continue;
    values[i] = signature.defaults[i];
    if (!values[i])
      throw py::type_error(std::string(signature.name) + ": `" + PyUnicode_AsUTF8(signature.names[i]) + "` is missing");
  }
}

void refuse_argument(const Signature& signature, size_t index, const char* expected, PyObject* got) {
  PyErr_Clear();
  throw py::type_error(std::string(signature.name) + ": `" + PyUnicode_AsUTF8(signature.names[index]) + "` expected " +
                       expected + ", got " + Py_TYPE(got)->tp_name);
}

void set_python_error() {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const Error& error) {
    // Looked up when it is needed, so that importing stays cheap.
    const py::object type = py::module_::import("microgpt.errors").attr(error.kind());
    PyErr_SetString(type.ptr(), error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

int64_t to_int(const Signature& signature, size_t index, PyObject* value) {
  const long long number = PyLong_AsLongLong(value);  // takes whatever has __index__, so no float
  if (number == -1 && PyErr_Occurred()) refuse_argument(signature, index, "an int of 64 bits", value);
  return number;
}

int to_int32(const Signature& signature, size_t index, PyObject* value) {
  const int64_t number = to_int(signature, index, value);
  if (number != (int)number)
    throw usage_error(std::string(signature.name) + ": `" + PyUnicode_AsUTF8(signature.names[index]) +
                      "` expected an int of 32 bits, got " + std::to_string(number));
  return (int)number;
}

uint64_t to_uint(const Signature& signature, size_t index, PyObject* value) {
  const py::object number = py::reinterpret_steal<py::object>(PyNumber_Index(value));
  const unsigned long long bits = number ? PyLong_AsUnsignedLongLong(number.ptr()) : 0;
  if (PyErr_Occurred()) refuse_argument(signature, index, "an int from 0 to 2**64 - 1", value);
  return bits;
}

double to_double(const Signature& signature, size_t index, PyObject* value) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  const double number = PyFloat_AsDouble(value);
  if (number == -1.0 && PyErr_Occurred()) refuse_argument(signature, index, "a number", value);
  return number;
}

bool to_bool(const Signature& signature, size_t index, PyObject* value) {
  if (value == Py_True || value == Py_False) return value == Py_True;
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) refuse_argument(signature, index, "True or False", value);
  return truth != 0;
}

Sizes to_sizes(const Signature& signature, size_t index, PyObject* value) {
  if (!PyList_Check(value) && !PyTuple_Check(value)) refuse_argument(signature, index, "a list of ints", value);
  // A number of a class of its own may change the list while it is read.
  const py::object items = py::reinterpret_steal<py::object>(PyTuple_CheckExact(value) ? Py_NewRef(value) : PySequence_Tuple(value));
  if (!items) throw py::error_already_set();
  const Py_ssize_t count = PyTuple_GET_SIZE(items.ptr());
  if (count > kMaxDims)
    throw shape_error(std::string(signature.name) + ": at most " + std::to_string(kMaxDims) + " axes");
  Sizes sizes;
  sizes.count = (int32_t)count;
  for (Py_ssize_t i = 0; i < count; ++i) sizes.at[i] = to_int(signature, index, PyTuple_GET_ITEM(items.ptr(), i));
  return sizes;
}

void Definition::add(const py::arg& arg, PyObject* value) {
  if (index_ == signature_.count) throw std::logic_error(std::string(signature_.name) + ": too many names");
  signature_.names[index_] = PyUnicode_InternFromString(arg.name);
  Py_XINCREF(value);  // name and default are kept for good: functions of a module stay
  if (value && PyUnicode_CheckExact(value)) PyUnicode_InternInPlace(&value);
  signature_.defaults[index_] = value;
  text_ += std::string(index_ ? ", " : "") + arg.name + ": " + types_[index_];
  if (value) text_ += " = " + py::repr(value).cast<std::string>();
  ++index_;
}

std::string Definition::finish(const char* result) {
  if (index_ != signature_.count) throw std::logic_error(std::string(signature_.name) + ": name every argument");
  text_ += std::string(") -> ") + result;
  return description_.empty() ? text_ : text_ + "\n\n" + description_;
}

}  // namespace mg::bindings
