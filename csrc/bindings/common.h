// What every binding file shares: argument checks and the call that releases the GIL where it pays.
// Shapes are validated once, in the Python ops; here sizes are checked again so that no mistake above becomes a stray write.
#pragma once
#include <pybind11/pybind11.h>
#include <cmath>
#include <string>
#include <type_traits>

#include "bindings/array_object.h"
#include "bindings/function.h"
#include "core/array.h"
#include "core/checked.h"
#include "core/error.h"
#include "core/qtensor.h"
#include "runtime/program.h"
#include "targets/dispatch.h"

namespace mg::bindings {

namespace py = pybind11;

void register_arrays(py::module_& m);
void register_checks(py::module_& m);
void register_calls(py::module_& m);
void register_math(py::module_& m);
void register_layers(py::module_& m);
void register_experts(py::module_& m);
void register_ssd(py::module_& m);
void register_delta(py::module_& m);
void register_rwkv(py::module_& m);
void register_training(py::module_& m);
void register_runtime(py::module_& m);
void register_peaks(py::module_& m);
void register_scan(py::module_& m);
void register_quantized(py::module_& m);
void register_sampling(py::module_& m);

template <class T> T* pointer(const Array* array, int64_t size, const char* op, const char* name, bool required) {
  if (!array) {
    if (required) throw usage_error(std::string(op) + ": `" + name + "` is missing");
    return nullptr;
  }
  if (array->dtype != dtype_of<T>::value)
    throw dtype_error(std::string(op) + ": `" + name + "` must be " + dtype_name(dtype_of<T>::value) + ", got " +
                      dtype_name(array->dtype));
  if (array->size < size)
    throw shape_error(std::string(op) + ": `" + name + "` needs " + std::to_string(size) + " elements, got shape " +
                      shape_text(array->shape, array->rank));
  return array->as<T>();
}

// An input, an optional input, an output and an optional output of at least `size` elements.
template <class T> const T* in(const Array* array, int64_t size, const char* op, const char* name) {
  return pointer<T>(array, size, op, name, true);
}
template <class T> const T* in_opt(const Array* array, int64_t size, const char* op, const char* name) {
  return pointer<T>(array, size, op, name, false);
}
template <class T> T* out_opt(const Array* array, int64_t size, const char* op, const char* name) {
  if (array && !array->writable) throw usage_error(std::string(op) + ": `" + name + "` is read-only");
  return pointer<T>(array, size, op, name, false);
}
template <class T> T* out(const Array* array, int64_t size, const char* op, const char* name) {
  if (!array) throw usage_error(std::string(op) + ": `" + name + "` is missing");
  return out_opt<T>(array, size, op, name);
}

inline double finite(double value, const char* op, const char* name) {
  if (!std::isfinite(value)) throw usage_error(std::string(op) + ": `" + name + "` must be finite, got " + std::to_string(value));
  return value;
}
inline double not_negative(double value, const char* op, const char* name) {
  if (!(finite(value, op, name) >= 0))
    throw usage_error(std::string(op) + ": `" + name + "` must be at least 0, got " + std::to_string(value));
  return value;
}

// One of an enumeration that ends with `last`.
template <class E> E choice(int value, E last, const char* op, const char* name) {
  if (value < 0 || value > (int)last)
    throw usage_error(std::string(op) + ": `" + name + "` must be in 0.." + std::to_string((int)last) + ", got " + std::to_string(value));
  return (E)value;
}

// Calls f with a float, a double or a bf16, by the array's type.
template <class F> void by_dtype(const Array& array, const char* op, F f) {
  if (array.dtype == DType::f32)
    f(float{});
  else if (array.dtype == DType::f64)
    f(double{});
  else if (array.dtype == DType::bf16)
    f(bf16{});
  else
    throw dtype_error(std::string(op) + ": expected float32, float64 or bfloat16, got " + dtype_name(array.dtype));
}

// Calls f with a float or a double: what has no bf16 form.
template <class F> void by_wide_dtype(const Array& array, const char* op, F f) {
  if (array.dtype == DType::f32)
    f(float{});
  else if (array.dtype == DType::f64)
    f(double{});
  else
    throw dtype_error(std::string(op) + ": expected float32 or float64, got " + dtype_name(array.dtype));
}

inline Use to(const Array* array) { return {array, Use::written}; }
inline Use to(const Array& array) { return to(&array); }
inline Use each(const Array* array) { return {array, Use::each}; }
inline Use each(const Array& array) { return each(&array); }
// Throws if what is written shares memory that it must not. `names`: the source text of `uses`, for the error.
void check_apart(const char* op, const char* names, std::initializer_list<Use> uses);

template <class A>
void run_kernel(const char* name, void (*kernel)(const A&, const Share&), const A& args, Plan plan, const char* names,
                std::initializer_list<Use> uses) {
  check_apart(name, names, uses);
  if (plan.shares <= 1) {
    launch(name, kernel, args, plan, uses);
  } else {
    py::gil_scoped_release release;
    launch(name, kernel, args, plan, uses);
  }
}

// Throws unless `array`, if there is one, is of a floating-point type, and of that of `first`, the first argument.
void check_like(const Array* array, const char* op, const char* name, const Array& first, const char* first_name);

// A weight (n, k) of a quantized type in `data`, or the first of so many that follow each other there, checked.
QWeight weight_of(const Array& data, int type, int64_t n, int64_t k, int64_t group, const char* op, int64_t experts = 1);

// Runs `check` now and, of what is being recorded, before each replay: what arrays of indices say changes between. `check` holds
// plain values, and names that live for good. Those of equal arrays and `numbers` are one.
template <class Check>
void check_each_time(const char* what, std::initializer_list<const Array*> arrays, std::initializer_list<int64_t> numbers,
                     const Check& check, bool now = true) {
  if (now) check();
  Program* const program = recording();
  if (!program) return;
  std::string key = what;
  for (const Array* array : arrays) key += " " + std::to_string((size_t)array->data) + " " + std::to_string(array->size);
  for (const int64_t number : numbers) key += " " + std::to_string(number);
  program->append_check(key, arrays, check);
}

// Throws unless every id is in [low, high). Not now: where they are fed only after the recording.
void check_ids(const Array& ids, int64_t low, int64_t high, const char* op, const char* name, bool now = true);

// Throws unless `starts` (S + 1) run from 0 to `rows` and never fall; gives S.
int64_t check_starts(const Array& starts, int64_t rows, const char* op, const char* name = "q_start",
                     const char* unit = "sequence");

}  // namespace mg::bindings

// MG_RUN(gemm, T, args, uses...): launch kernel `gemm` for element type T.
#define MG_RUN(name, T, args, ...) run_kernel(#name, kernels<T>().name, args, plan_##name(args), #__VA_ARGS__, {__VA_ARGS__})
// The same of a kernel that is not in a table of them.
#define MG_RUN_THIS(name, kernel, plan, args, ...) run_kernel(name, kernel, args, plan, #__VA_ARGS__, {__VA_ARGS__})
