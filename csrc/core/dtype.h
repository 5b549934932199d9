// Element types. A row here, a row in array.cpp's name table, and the type exists everywhere.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "core/bf16.h"

namespace mg {

enum class DType : int32_t { f32, f64, i32, i64, u8, bf16 };
constexpr int kDTypes = 6;

size_t item_size(DType dtype);
const char* dtype_name(DType dtype);  // NumPy's name: "float32", ...

template <class T> struct dtype_of;
template <> struct dtype_of<float> { static constexpr DType value = DType::f32; };
template <> struct dtype_of<bf16> { static constexpr DType value = DType::bf16; };
template <> struct dtype_of<double> { static constexpr DType value = DType::f64; };
template <> struct dtype_of<int32_t> { static constexpr DType value = DType::i32; };
template <> struct dtype_of<int64_t> { static constexpr DType value = DType::i64; };
template <> struct dtype_of<uint8_t> { static constexpr DType value = DType::u8; };

}  // namespace mg
