// What the simulator's bindings share: untyped arrays and the choice of a number type.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "../kernels/dtype.h"

namespace revgrad {

using Bytes = pybind11::array;  // numpy knows no bfloat16, so types travel by name

template <class T>
const T* read(const Bytes& array) {
  return static_cast<const T*>(array.data());
}

template <class T>
T* write(const Bytes& array) {
  return static_cast<T*>(const_cast<Bytes&>(array).mutable_data());
}

template <class F>
void by_dtype(const std::string& name, F f) {
  if (name == "float64") return f(double{});
  if (name == "float32") return f(float{});
  if (name == "bfloat16") return f(BFloat16{});
  if (name == "float16") return f(Half{});
  throw std::invalid_argument("no kernel takes " + name);
}

}  // namespace revgrad
