// The element types of an op's arguments, checked in one call: check_float("linear", x=x, weight=weight).
#include "bindings/common.h"

namespace mg::bindings {
namespace {

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16; }

// The text of an error: "linear: `weight` expected float32 like `x`, got float64".
Error wrong(const std::string& op, const std::string& argument, const std::string& expected, const std::string& got) {
  return dtype_error(op + ": `" + argument + "` expected " + expected + ", got " + got);
}
Error wrong(PyObject* op, PyObject* argument, const std::string& expected, const std::string& got) {
  return wrong(PyUnicode_AsUTF8(op), PyUnicode_AsUTF8(argument), expected, got);
}

// Calls each(name, array) for the keywords that are not None; `skip` positional arguments stand before them.
template <class Each>
PyObject* walk(PyObject* const* args, Py_ssize_t given, Py_ssize_t skip, PyObject* keywords, const Each& each) {
  try {
    if (given != skip || !PyUnicode_Check(args[0])) throw py::type_error("expected the op's name, then arrays by name");
    const Py_ssize_t count = keywords ? PyTuple_GET_SIZE(keywords) : 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* const value = args[given + i];
      if (value == Py_None) continue;
      const Array* array = unwrap(value);
      if (!array) throw wrong(args[0], PyTuple_GET_ITEM(keywords, i), "an Array", Py_TYPE(value)->tp_name);
      each(PyTuple_GET_ITEM(keywords, i), *array);
    }
    Py_RETURN_NONE;
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

PyObject* check_float(PyObject*, PyObject* const* args, Py_ssize_t given, PyObject* keywords) {
  PyObject* first = nullptr;
  DType dtype = DType::f32;
  return walk(args, given, 1, keywords, [&](PyObject* name, const Array& array) {
    if (!is_float(array.dtype)) throw wrong(args[0], name, "float32, float64 or bfloat16", dtype_name(array.dtype));
    if (!first) first = name, dtype = array.dtype;
    else if (array.dtype != dtype)
      throw wrong(args[0], name, std::string(dtype_name(dtype)) + " like `" + PyUnicode_AsUTF8(first) + "`",
                  dtype_name(array.dtype));
  });
}

PyObject* check_wide(PyObject*, PyObject* const* args, Py_ssize_t given, PyObject* keywords) {
  return walk(args, given, 2, keywords, [&](PyObject* name, const Array& array) {
    const Array* like = unwrap(args[1]);
    if (!like) throw py::type_error("check_wide: the second argument is an Array");
    const DType expected = like->dtype == DType::bf16 ? DType::f32 : like->dtype;
    if (array.dtype != expected)
      throw wrong(args[0], name, std::string(dtype_name(expected)) + " beside " + dtype_name(like->dtype),
                  dtype_name(array.dtype));
  });
}

PyObject* check_int32(PyObject*, PyObject* const* args, Py_ssize_t given, PyObject* keywords) {
  return walk(args, given, 1, keywords, [&](PyObject* name, const Array& array) {
    if (array.dtype != DType::i32) throw wrong(args[0], name, "int32", dtype_name(array.dtype));
  });
}

// Argument `at` of "&x, to(y), each(z)": its name.
std::string name_of(const char* names, size_t at) {
  std::string all = names;
  size_t begin = 0;
  for (; at > 0; --at) begin = all.find(',', begin) + 1;
  std::string name = all.substr(begin, all.find(',', begin) - begin);
  const size_t open = name.find('('), first = open == std::string::npos ? name.find_first_not_of(" &") : open + 1;
  const size_t last = name.find_first_of(") ", first);
  return name.substr(first, last - first);
}

template <auto Fn> PyMethodDef method(const char* name, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Fn)), METH_FASTCALL | METH_KEYWORDS, doc};
}

}  // namespace

void check_apart(const char* op, const char* names, std::initializer_list<Use> uses) {
  for (const Use& written : uses) {
    const Array* y = written.array;
    if (written.kind != Use::written || !y || !y->data || y->size == 0) continue;
    for (const Use& other : uses) {
      const Array* x = other.array;
      if (&other == &written || !x || !x->data || x->size == 0) continue;
      if (x->data + x->bytes() <= y->data || y->data + y->bytes() <= x->data) continue;
      if (other.kind == Use::each && x->data == y->data && x->bytes() == y->bytes()) continue;
      const std::string output = name_of(names, (size_t)(&written - uses.begin()));
      const std::string input = name_of(names, (size_t)(&other - uses.begin()));
      throw usage_error(std::string(op) + ": `" + output + "` of shape " + shape_text(y->shape, y->rank) + " shares memory with `" +
                        input + "` of shape " + shape_text(x->shape, x->rank) + "; it must be an array of its own" +
                        (other.kind == Use::each ? ", or the same one" : ""));
    }
  }
}

void check_like(const Array* array, const char* op, const char* name, const Array& first, const char* first_name) {
  if (!array) return;
  if (!is_float(array->dtype)) throw wrong(op, name, "float32, float64 or bfloat16", dtype_name(array->dtype));
  if (array->dtype != first.dtype)
    throw wrong(op, name, std::string(dtype_name(first.dtype)) + " like `" + first_name + "`", dtype_name(array->dtype));
}

void register_checks(py::module_& m) {
  static PyMethodDef methods[] = {
      method<&check_float>("check_float",
                           "check_float(name: str, **arrays: microgpt._kernels.Array | None) -> None\n\n"
                           "Raise DTypeError unless all given arrays are of one floating-point type."),
      method<&check_wide>("check_wide",
                          "check_wide(name: str, like: microgpt._kernels.Array, **arrays: microgpt._kernels.Array | None) "
                          "-> None\n\nRaise DTypeError unless all given arrays are of the type that goes with `like`:\n"
                          "float32 beside bfloat16, else the same."),
      method<&check_int32>("check_int32",
                           "check_int32(name: str, **arrays: microgpt._kernels.Array | None) -> None\n\n"
                           "Raise DTypeError unless all given arrays are int32."),
      {},
  };
  if (PyModule_AddFunctions(m.ptr(), methods) < 0) throw py::error_already_set();
}

}  // namespace mg::bindings
