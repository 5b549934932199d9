// What ops do around their kernels, where it would take longer in Python than a small kernel takes: arguments are unpacked,
// checked, and results made in one call.
#include <algorithm>
#include <utility>

#include "bindings/common.h"

#include <structmember.h>

namespace mg::bindings {

struct Made {
  py::tuple arrays;
};
template <> struct Result<Made> {
  static constexpr const char* kType = "tuple[typing.Any, ...]";
  static PyObject* give(Made&& made) { return made.arrays.release().ptr(); }
};
struct MadeOrNot {
  py::object arrays;  // a tuple or None
};
template <> struct Result<MadeOrNot> {
  static constexpr const char* kType = "tuple[typing.Any, ...] | None";
  static PyObject* give(MadeOrNot&& made) { return made.arrays.release().ptr(); }
};

namespace {

// Where a Tensor has its attributes: they are __slots__, so every object has them in the same place.
struct TensorType {
  PyTypeObject* type;
  Py_ssize_t data, requires_grad, slot;
};
Py_ssize_t offset_of(PyObject* type, const char* name) {
  const py::object member = py::reinterpret_borrow<py::object>(type).attr(name);
  if (Py_TYPE(member.ptr()) != &PyMemberDescr_Type) throw py::type_error(std::string("Tensor.") + name + " is no slot");
  return reinterpret_cast<PyMemberDescrObject*>(member.ptr())->d_member->offset;
}
const TensorType& tensor_type(PyObject* type) {
  static TensorType found = {nullptr, 0, 0, 0};
  if (reinterpret_cast<PyObject*>(found.type) != type) {
    if (!PyType_Check(type)) throw py::type_error("call_op: the first argument is Tensor");
    found = {reinterpret_cast<PyTypeObject*>(type), offset_of(type, "data"), offset_of(type, "requires_grad"),
             offset_of(type, "slot")};
    Py_INCREF(type);
  }
  return found;
}
PyObject*& at(PyObject* tensor, Py_ssize_t offset) {
  return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(tensor) + offset);
}

// Types that stand where tensors do and take no gradient: ops are given them as they are.
PyTypeObject* kept_types[4];
size_t kept_count = 0;
void keep_type(py::handle type) {
  if (!PyType_Check(type.ptr()) || kept_count == std::size(kept_types)) throw py::type_error("keep_type: one of a few types");
  Py_INCREF(type.ptr());
  kept_types[kept_count++] = reinterpret_cast<PyTypeObject*>(type.ptr());
}
bool is_kept(PyObject* value) {
  return std::find(kept_types, kept_types + kept_count, Py_TYPE(value)) != kept_types + kept_count;
}

// A tensor of an array, without a slot; both references are the caller's.
PyObject* untaped(const TensorType& tensor, PyObject* array) {
  PyObject* const made = tensor.type->tp_alloc(tensor.type, 0);
  if (!made) throw py::error_already_set();
  Py_INCREF(array), Py_INCREF(Py_False), Py_INCREF(Py_None);
  at(made, tensor.data) = array, at(made, tensor.requires_grad) = Py_False, at(made, tensor.slot) = Py_None;
  return made;
}

constexpr Py_ssize_t kMostArguments = 32;

// call_op(Tensor, forward, args, count, required, taping), see below.
PyObject* call_op(PyObject*, PyObject* const* given, Py_ssize_t number) {
  try {
    if (number != 6 || !PyTuple_Check(given[2]))
      throw py::type_error("call_op: Tensor, forward, args, count, required, taping");
    const TensorType& tensor = tensor_type(given[0]);
    const Py_ssize_t size = PyTuple_GET_SIZE(given[2]), count = PyLong_AsSsize_t(given[3]);
    const Py_ssize_t required = PyLong_AsSsize_t(given[4]), all = size > count ? size : count;
    if (PyErr_Occurred()) throw py::error_already_set();
    if (all > kMostArguments) Py_RETURN_NONE;
    PyObject *arrays[kMostArguments + 1], *slots[kMostArguments];  // borrowed: the tuple holds the tensors
    bool wanted = false;
    for (Py_ssize_t i = 0; i < all; ++i) {
      PyObject* const value = i < size ? PyTuple_GET_ITEM(given[2], i) : Py_None;
      arrays[i] = value, slots[i] = Py_None;
      if (i >= count) continue;
      if (PyObject_TypeCheck(value, tensor.type)) {
        arrays[i] = at(value, tensor.data), slots[i] = at(value, tensor.slot);
        if (!arrays[i] || !slots[i]) Py_RETURN_NONE;
        wanted |= slots[i] != Py_None;
      } else if (value == Py_None ? i < required : !is_kept(value)) {
        Py_RETURN_NONE;
      }
    }
    const auto list_of = [](PyObject* const* items, Py_ssize_t n) {
      py::list list(n);
      for (Py_ssize_t i = 0; i < n; ++i) Py_INCREF(items[i]), PyList_SET_ITEM(list.ptr(), i, items[i]);
      return list;
    };
    const bool taped = wanted && given[5] == Py_True, call = given[1] != Py_None;
    py::object needs, inputs;
    if (taped || !call) {
      PyObject* each[kMostArguments];
      for (Py_ssize_t i = 0; i < count; ++i) each[i] = slots[i] == Py_None ? Py_False : Py_True;
      needs = list_of(each, count);
      inputs = list_of(slots, count);
    }
    if (!call) return PyTuple_Pack(3, list_of(arrays, all).ptr(), inputs.ptr(), needs.ptr());
    static PyObject *const word = PyUnicode_InternFromString("needs"), *const names = PyTuple_Pack(1, word);
    arrays[all] = needs.ptr();
    const py::object made = py::reinterpret_steal<py::object>(
        PyObject_Vectorcall(given[1], arrays, (size_t)all, taped ? names : nullptr));
    if (!made) return nullptr;
    if (!PyTuple_Check(made.ptr()) || PyTuple_GET_SIZE(made.ptr()) != 2)
      throw py::type_error("call_op: a forward gives (output, saved)");
    if (taped)
      return PyTuple_Pack(3, PyTuple_GET_ITEM(made.ptr(), 0), PyTuple_GET_ITEM(made.ptr(), 1), inputs.ptr());
    PyObject* const out = PyTuple_GET_ITEM(made.ptr(), 0);
    if (unwrap(out)) return untaped(tensor, out);
    if (!PyTuple_Check(out)) throw py::type_error("call_op: outputs are an Array or a tuple of them");
    py::tuple tensors(PyTuple_GET_SIZE(out));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(out); ++i)
      PyTuple_SET_ITEM(tensors.ptr(), i, untaped(tensor, PyTuple_GET_ITEM(out, i)));
    PyObject* const none = Py_None;
    return PyTuple_Pack(2, tensors.ptr(), none);
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
template <class... Arrays> Made results(Arrays&&... arrays) {
  py::tuple tuple(sizeof...(Arrays));
  Py_ssize_t at = 0;
  ((PyTuple_SET_ITEM(tuple.ptr(), at, arrays.data ? wrap(std::move(arrays)) : py::none().release().ptr()), ++at), ...);
  return {std::move(tuple)};
}

// -> (y, what the activation's backward needs or None). `keep`: a gradient will be asked for.
Made linear(const Array& x, const Array& weight, const Array* bias, const Array* residual, int act, bool wide_out,
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
  Array y, slope;
  by_dtype(x, "linear", [&](auto t) {
    using T = decltype(t);
    y = make_array(wide_out ? dtype_of<Wide<T>>::value : x.dtype, shape, x.rank);
    if (keep && act) slope = make_array(x.dtype, shape, x.rank);
    GemmArgs<T> args{};
    args.a = x.as<T>(), args.b = weight.as<T>();
    if (y.dtype == x.dtype) args.c = y.as<T>();
    else args.wide_c = y.as<Wide<T>>();
    args.bias = bias ? bias->as<T>() : nullptr, args.residual = residual ? residual->as<T>() : nullptr;
    args.slope = slope.as<T>();
    args.m = rows, args.n = n, args.k = inner, args.lda = inner, args.ldb = inner, args.ldc = n;
    args.batch = 1, args.trans_b = 1, args.act = choice(act, Act::silu, "linear", "act");
    MG_RUN(gemm, T, args, &x, &weight, to(y), bias, residual, to(slope));
  });
  return results(std::move(y), std::move(slope));
}

// -> (x W[i]^T + bias[i], ...) of one to four weights, for at most kJoinedRows rows: one kernel.
Made linear_joined(const Array& x, py::handle weights, py::handle biases) {
  const char* op = "linear_joined";
  const py::tuple given = py::cast<py::tuple>(weights), added = py::cast<py::tuple>(biases);
  const size_t count = given.size();
  if (count < 1 || count > kMostJoined || added.size() != count)
    throw usage_error("linear_joined: one to four weights, a bias or None for each");
  const int64_t inner = x.rank ? x.dim(-1) : 0;
  int64_t shape[kMaxRank], rows = 1;
  for (int axis = 0; axis < x.rank - 1; ++axis) rows = checked_mul(rows, shape[axis] = x.dim(axis));
  if (!x.rank || rows > kJoinedRows) refuse(op, "x", "(..., K), at most " + std::to_string(kJoinedRows) + " rows", x);
  const Array *each[kMostJoined] = {}, *bias[kMostJoined] = {};
  Array y[kMostJoined];
  for (size_t i = 0; i < count; ++i) {
    each[i] = unwrap(given[i].ptr()), bias[i] = unwrap(added[i].ptr());
    if (!each[i] || each[i]->rank != 2 || each[i]->dim(1) != inner)
      throw shape_error("linear_joined: weights expected (out, " + std::to_string(inner) + ")");
    check_like(each[i], op, "weight", x, "x");
    check_like(bias[i], op, "bias", x, "x");
    const int64_t n = each[i]->dim(0);
    check_shape(bias[i], &n, 1, op, "bias");
    shape[x.rank - 1] = n;
    y[i] = make_array(x.dtype, shape, x.rank);
  }
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    JoinedGemmArgs<T> args{};
    for (size_t i = 0; i < count; ++i)
      args.weights[i] = {each[i]->as<T>(), bias[i] ? bias[i]->as<T>() : nullptr, y[i].as<T>(), each[i]->dim(0)};
    args.a = x.as<T>(), args.m = rows, args.k = inner, args.count = (int32_t)count;
    MG_RUN(gemm_joined, T, args, &x, each[0], each[1], each[2], each[3], bias[0], bias[1], bias[2], bias[3],
           to(y[0]), to(y[1]), to(y[2]), to(y[3]));
  });
  py::tuple tuple(count);
  for (size_t i = 0; i < count; ++i) PyTuple_SET_ITEM(tuple.ptr(), (Py_ssize_t)i, wrap(std::move(y[i])));
  return {std::move(tuple)};
}

// A QTensor as the products see it.
struct Weight {
  const Array* data;
  QWeight w;
  py::object held;  // what `data` points into
};
Weight weight_in(PyObject* given, const char* op) {
  static PyObject *const data_name = PyUnicode_InternFromString("data"), *const sizes_name = PyUnicode_InternFromString("sizes");
  const py::object data = py::reinterpret_steal<py::object>(PyObject_GetAttr(given, data_name));
  const py::object sizes = py::reinterpret_steal<py::object>(data ? PyObject_GetAttr(given, sizes_name) : nullptr);
  if (!sizes) throw py::error_already_set();
  const Array* const array = unwrap(data.ptr());
  int64_t numbers[4] = {};
  if (!array || !PyTuple_Check(sizes.ptr()) || PyTuple_GET_SIZE(sizes.ptr()) != 4)
    throw py::type_error(std::string(op) + ": a weight has `data`, and `sizes` (type, n, k, group)");
  for (int i = 0; i < 4; ++i) numbers[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), i));
  if (PyErr_Occurred()) throw py::error_already_set();
  return {array, weight_of(*array, (int)numbers[0], numbers[1], numbers[2], numbers[3], op), data};
}

// Weights of which this is true take the same activations.
bool alike(const QWeight& a, const QWeight& b) {
  return a.k == b.k && a.group == b.group && a.order == b.order && q_tile_rows(a.type) == q_tile_rows(b.type) &&
         q_starts(a.type) == q_starts(b.type) && q_start_factor(a.type) == q_start_factor(b.type);
}

// Activations of a product: x rounded to int8 for `weight`.
struct Rows {
  Array codes, scales, starts;
  int64_t m;
};
template <class T> Rows rounded(const Array& x, const Weight& weight, const char* op) {
  const QWeight& w = weight.w;
  const int64_t m = w.k > 0 ? x.size / w.k : 0, groups = q_groups(w.k, w.group), scales = checked_mul(m, groups);
  const int64_t codes = checked_mul(scales, w.group), starts = checked_mul(scales, q_starts(w.type));
  Rows rows = {make_array(DType::u8, &codes, 1), make_array(DType::f32, &scales, 1), make_array(DType::i32, &starts, 1), m};
  QRowsArgs<T> args{in<T>(&x, 0, op, "x"), reinterpret_cast<int8_t*>(rows.codes.as<uint8_t>()), rows.scales.as<float>(),
                    rows.starts.as<int32_t>(), w.order, m, w.k, w.group, w.type};
  MG_RUN(qrows, T, args, &x, to(rows.codes), to(rows.scales), to(rows.starts), w.order ? weight.data : nullptr);
  return rows;
}
template <class T> QGemmArgs<T> product_of(const Rows& rows, const QWeight& w) {
  QGemmArgs<T> args{};
  args.w = w, args.m = rows.m;
  args.codes = reinterpret_cast<const int8_t*>(rows.codes.as<uint8_t>());
  args.scales = rows.scales.as<float>(), args.starts = rows.starts.as<int32_t>();
  return args;
}

// -> residual + act(x W^T + bias) with x rounded to int8 on the way, by two kernels.
Array q_linear(const Array& x, py::handle weight, const Array* bias, const Array* residual, int act, bool wide_out) {
  const char* op = "linear";
  const Weight given = weight_in(weight.ptr(), op);
  const std::pair<const char*, const Array*> typed[] = {{"x", &x}, {"bias", bias}, {"residual", residual}};
  for (const auto& [name, array] : typed) check_like(array, op, name, x, "x");
  const QWeight& w = given.w;
  if (x.rank == 0 || x.dim(-1) != w.k) refuse(op, "x", "(..., " + std::to_string(w.k) + ")", x);
  check_shape(bias, &w.n, 1, op, "bias");
  int64_t shape[kMaxRank];
  std::copy(x.shape, x.shape + x.rank, shape);
  shape[x.rank - 1] = w.n;
  check_shape(residual, shape, x.rank, op, "residual");
  Array y;
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    const Rows rows = rounded<T>(x, given, op);
    y = make_array(wide_out ? dtype_of<Wide<T>>::value : x.dtype, shape, x.rank);
    QGemmArgs<T> args = product_of<T>(rows, w);
    if (y.dtype == x.dtype) args.c = y.as<T>();
    else args.wide_c = y.as<Wide<T>>();
    args.bias = bias ? bias->as<T>() : nullptr, args.residual = residual ? residual->as<T>() : nullptr;
    args.act = choice(act, Act::silu, "linear", "act");
    MG_RUN(qgemm, T, args, &rows.codes, &rows.scales, &rows.starts, given.data, bias, residual, to(y));
  });
  return y;
}

// -> (x W^T + bias, ...) of several weights that take the same activations, by one kernel for kMostJoined of them; None where
// they do not, or where a shape or a type is not right: linear() says which.
MadeOrNot q_joined(const Array& x, py::handle weights, py::handle biases) {
  const char* op = "joined_linear";
  const py::tuple given = py::cast<py::tuple>(weights), added = py::cast<py::tuple>(biases);
  const size_t count = given.size();
  constexpr size_t kMost = 16;
  if (count == 0 || count > kMost || added.size() != count || x.rank == 0 || x.dtype == DType::f64) return {py::none()};
  static PyObject *const how = PyUnicode_InternFromString("activations"), *const rounds = PyUnicode_InternFromString("int8");
  Weight each[kMost];
  const Array* bias[kMost] = {};
  for (size_t i = 0; i < count; ++i) {
    if (!is_kept(given[i].ptr())) return {py::none()};
    const py::object wanted = py::reinterpret_steal<py::object>(PyObject_GetAttr(given[i].ptr(), how));
    if (!wanted) throw py::error_already_set();
    if (PyObject_RichCompareBool(wanted.ptr(), rounds, Py_EQ) != 1) return {py::none()};
    each[i] = weight_in(given[i].ptr(), op);
    const QWeight& w = each[i].w;
    bias[i] = unwrap(added[i].ptr());
    if (kQTraits[(int)w.type].book == QBook::floats || w.k != x.dim(-1) || !alike(w, each[0].w)) return {py::none()};
    if (bias[i] && (bias[i]->rank != 1 || bias[i]->size != w.n || bias[i]->dtype != x.dtype)) return {py::none()};
  }
  int64_t shape[kMaxRank];
  std::copy(x.shape, x.shape + x.rank, shape);
  py::tuple made(count);
  by_dtype(x, op, [&](auto t) {
    using T = decltype(t);
    const Rows rows = rounded<T>(x, each[0], op);
    for (size_t first = 0; first < count; first += kMostJoined) {
      const size_t now = std::min<size_t>(count - first, kMostJoined);
      QGemmArgs<T> args = product_of<T>(rows, each[first].w);
      Array y[kMostJoined];
      const Array *data[kMostJoined] = {}, *b[kMostJoined] = {};
      for (size_t i = 0; i < now; ++i) {
        const QWeight& w = each[first + i].w;
        data[i] = each[first + i].data, b[i] = bias[first + i];
        shape[x.rank - 1] = w.n;
        y[i] = make_array(x.dtype, shape, x.rank);
        T* const c = y[i].template as<T>();
        const T* const added_to = b[i] ? b[i]->template as<T>() : nullptr;
        if (i == 0) args.c = c, args.bias = added_to;
        else args.more[i - 1] = {w, c, added_to};
      }
      args.joined = (int32_t)now - 1;
      MG_RUN(qgemm, T, args, &rows.codes, &rows.scales, &rows.starts, data[0], data[1], data[2], data[3], b[0], b[1], b[2], b[3],
             to(y[0]), to(y[1]), to(y[2]), to(y[3]));
      for (size_t i = 0; i < now; ++i) PyTuple_SET_ITEM(made.ptr(), (Py_ssize_t)(first + i), wrap(std::move(y[i])));
    }
  });
  return {std::move(made)};
}

// -> (y, mean or None, rstd) of layer_norm, or of rms_norm.
Made normalize(const Array& x, const Array* weight, const Array* bias, double eps, bool center) {
  const char* op = center ? "layer_norm" : "rms_norm";
  const std::pair<const char*, const Array*> given[] = {{"x", &x}, {"weight", weight}, {"bias", bias}};
  for (const auto& [name, array] : given) check_like(array, op, name, x, "x");
  not_negative(eps, op, "eps");
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
    MG_RUN(norm, T, args, &x, weight, bias, to(y), to(mean), to(rstd));
  });
  return results(std::move(y), std::move(mean), std::move(rstd));
}

}  // namespace

void register_calls(py::module_& m) {
  static PyMethodDef methods[] = {
      {"call_op", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_op)), METH_FASTCALL,
       "call_op(tensor: type, forward: collections.abc.Callable[..., typing.Any] | None, args: tuple[typing.Any, ...], "
       "count: int, required: int, taping: bool) -> typing.Any\n\n"
       "Calls forward with the arrays of `args`, of which the first `count` are tensors; those from `required` on may be\n"
       "None or missing. Gives a tensor, or (tensors, None) where there are several outputs. If a tensor has a slot and\n"
       "`taping`: (output, saved, slots), forward having been told which need a gradient. Without forward: (arrays, slots,\n"
       "whether each has one). None, and nothing is called, if one of the first is neither a tensor, None, nor of a type\n"
       "that was given to keep_type()."},
      {},
  };
  if (PyModule_AddFunctions(m.ptr(), methods) < 0) throw py::error_already_set();
  define<&keep_type>(m, "keep_type", py::arg("type"), "Objects of this type are given to ops where tensors are expected.");
  define<&linear>(m, "linear", py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("act"),
                  py::arg("wide_out"), py::arg("keep"), "(y, slope of act or None) of residual + act(x weight^T + bias)");
  define<&linear_joined>(m, "linear_joined", py::arg("x"), py::arg("weights"), py::arg("biases"),
                         "(x W^T + bias, ...) of one to four weights, for few rows");
  define<&q_linear>(m, "q_linear", py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("act"),
                    py::arg("wide_out"), "residual + act(x W^T + bias) of a QTensor, x rounded to int8");
  define<&q_joined>(m, "q_joined", py::arg("x"), py::arg("weights"), py::arg("biases"),
                    "(x W^T + bias, ...) of QTensors that take the same activations, or None");
  m.attr("JOINED_ROWS") = kJoinedRows;
  m.attr("MOST_JOINED") = kMostJoined;
  define<&normalize>(m, "normalize", py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("center"),
                     "(y, mean or None, rstd) of layer_norm if `center`, else of rms_norm");
}

}  // namespace mg::bindings
