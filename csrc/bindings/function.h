// define<&f>(m, "f", py::arg("x"), py::arg("alpha") = 1.0, "doc"): as m.def, for what ops call. The arguments are read
// where the interpreter has left them (METH_FASTCALL): no tuple, no dictionary, no search among overloads, which makes a
// call 30 to 60 ns instead of 500 to 1,000.
#pragma once
#include <pybind11/pybind11.h>
#include <array>
#include <string>
#include <utility>

#include "bindings/array_object.h"
#include "kernels/list.h"

namespace mg::bindings {

// Sizes or strides of a call: at most kMaxDims numbers from a list or a tuple.
struct Sizes {
  int64_t at[kMaxDims];
  int32_t count;
  int64_t operator[](int32_t axis) const { return at[axis]; }
};

struct Signature {
  const char* name = nullptr;
  size_t count = 0;
  PyObject** names = nullptr;     // interned
  PyObject** defaults = nullptr;  // null: required
};

// Puts positional arguments, keywords and defaults in order; throws TypeError with the function and the argument.
void arrange(const Signature& signature, PyObject* const* given, Py_ssize_t positional, PyObject* keywords,
             PyObject** values);
[[noreturn]] void refuse_argument(const Signature& signature, size_t index, const char* expected, PyObject* got);
void set_python_error();  // of the C++ exception that is being handled

int64_t to_int(const Signature& signature, size_t index, PyObject* value);
int to_int32(const Signature& signature, size_t index, PyObject* value);
uint64_t to_uint(const Signature& signature, size_t index, PyObject* value);
double to_double(const Signature& signature, size_t index, PyObject* value);
bool to_bool(const Signature& signature, size_t index, PyObject* value);
Sizes to_sizes(const Signature& signature, size_t index, PyObject* value);

// How an argument of type T is read, and what the stub calls it.
template <class T> struct Argument;
#define MG_ARGUMENT(Type, annotation, function)                                        \
  template <> struct Argument<Type> {                                                  \
    static constexpr const char* kType = annotation;                                   \
    static Type read(const Signature& s, size_t i, PyObject* v) { return (Type)function(s, i, v); } \
  };
MG_ARGUMENT(int64_t, "int", to_int)
MG_ARGUMENT(int, "int", to_int32)
MG_ARGUMENT(uint64_t, "int", to_uint)
MG_ARGUMENT(double, "float", to_double)
MG_ARGUMENT(bool, "bool", to_bool)
#undef MG_ARGUMENT
template <> struct Argument<const Sizes&> {
  static constexpr const char* kType = "collections.abc.Sequence[int]";
  static Sizes read(const Signature& s, size_t i, PyObject* v) { return to_sizes(s, i, v); }
};
template <> struct Argument<const Array&> {
  static constexpr const char* kType = "microgpt._kernels.Array";
  static const Array& read(const Signature& s, size_t i, PyObject* v) {
    const Array* array = unwrap(v);
    if (!array) refuse_argument(s, i, "an Array", v);
    return *array;
  }
};
template <> struct Argument<const Array*> {
  static constexpr const char* kType = "microgpt._kernels.Array | None";
  static const Array* read(const Signature& s, size_t i, PyObject* v) {
    const Array* array = unwrap(v);
    if (!array && v != Py_None) refuse_argument(s, i, "an Array or None", v);
    return array;
  }
};
template <> struct Argument<const char*> {
  static constexpr const char* kType = "str";
  static const char* read(const Signature& s, size_t i, PyObject* v) {
    const char* text = PyUnicode_Check(v) ? PyUnicode_AsUTF8(v) : nullptr;
    if (!text) refuse_argument(s, i, "a str", v);
    return text;
  }
};
template <> struct Argument<py::handle> {
  static constexpr const char* kType = "typing.Any";
  static py::handle read(const Signature&, size_t, PyObject* v) { return v; }
};

template <class R> struct Result;
template <> struct Result<void> { static constexpr const char* kType = "None"; };
template <> struct Result<Array> {
  static constexpr const char* kType = "microgpt._kernels.Array";
  static PyObject* give(Array&& array) { return wrap(std::move(array)); }
};
template <> struct Result<py::tuple> {  // a shape
  static constexpr const char* kType = "tuple[int, ...]";
  static PyObject* give(py::tuple&& tuple) { return tuple.release().ptr(); }
};

// What a function is told about itself when it is defined.
class Definition {
 public:
  Definition(const Signature& signature, const char* const* types)
      : signature_(signature), types_(types), text_(std::string(signature.name) + "(") {}
  void add(const py::arg& arg) { add(arg, nullptr); }
  void add(const py::arg_v& arg) { add(arg, arg.value.ptr()); }
  void add(const char* description) { description_ = description; }
  std::string finish(const char* result);  // the docstring: the signature for the stub, then the description

 private:
  void add(const py::arg& arg, PyObject* value);
  const Signature& signature_;
  const char* const* types_;
  size_t index_ = 0;
  std::string text_, description_;
};

template <auto Fn> struct Function;
template <class R, class... A, R (*Fn)(A...)> struct Function<Fn> {
  static constexpr size_t kCount = sizeof...(A);
  inline static std::array<PyObject*, kCount> names{}, defaults{};
  inline static Signature signature{};
  inline static std::string doc;
  inline static PyMethodDef method{};

  template <size_t... I> static PyObject* invoke(PyObject* const* values, std::index_sequence<I...>) {
    if constexpr (std::is_void_v<R>) {
      Fn(Argument<A>::read(signature, I, values[I])...);
      Py_RETURN_NONE;
    } else {
      return Result<R>::give(Fn(Argument<A>::read(signature, I, values[I])...));
    }
  }

  static PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t positional, PyObject* keywords) {
    try {
      PyObject* values[kCount];
      arrange(signature, given, positional, keywords, values);
      return invoke(values, std::index_sequence_for<A...>{});
    } catch (...) {
      set_python_error();
      return nullptr;
    }
  }

  template <class... Extra> static py::object make(const char* name, const Extra&... extra) {
    static constexpr const char* types[] = {Argument<A>::kType...};
    signature = {name, kCount, names.data(), defaults.data()};
    Definition definition(signature, types);
    (definition.add(extra), ...);
    doc = definition.finish(Result<R>::kType);
    method = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)),
              METH_FASTCALL | METH_KEYWORDS, doc.c_str()};
    return py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method, nullptr, nullptr));
  }
};

template <auto Fn, class... Extra> void define(py::module_& m, const char* name, const Extra&... extra) {
  py::object function = Function<Fn>::make(name, extra...);
  function.attr("__module__") = m.attr("__name__");
  m.attr(name) = function;
}

// The same as a method of a type; the first argument is the object.
template <auto Fn, class... Extra> void define_method(const py::object& type, const char* name, const Extra&... extra) {
  type.attr(name) = py::reinterpret_steal<py::object>(PyInstanceMethod_New(Function<Fn>::make(name, extra...).ptr()));
}

}  // namespace mg::bindings
