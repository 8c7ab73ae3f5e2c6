// torch.Tensor arguments as TensorView, without a torch header: through the DLPack C exchange table
// of the tensor's type (torch >= 2.9 or so: 0.1 us a tensor), or attribute by attribute where a
// type offers none.
#pragma once
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "core/dlpack.h"
#include "core/half.h"
#include "core/tensor_view.h"

namespace ds {

// Two argument types so that a signature says whether None is allowed.
struct Arg {
  TensorView view;
};
struct OptionalArg {
  TensorView view;
  bool given = false;
};

// Fills `view` from a tensor object; throws TypeError for anything else.
void view_of(pybind11::handle object, TensorView* view);
// torch's current cudaStream_t of a device.
void* current_stream(int device_id);

struct NamedView {
  const char* name;
  const TensorView& view;  // of an OptionalArg that is None: no bytes at all
};

// A check throws the documented exception, naming operation, argument, expected and got.
struct Check {
  const char* operation;
  int32_t device_type = dlpack::kCpu;  // where every operand must be
  int32_t device_id = 0;

  // -1 in `shape` means any extent.
  void tensor(const char* name, const TensorView& t, DType dtype,
              std::initializer_list<int64_t> shape) const;
  void disjoint(const char* name, const TensorView& out, const char* other_name,
                const TensorView& other) const;
  // No output overlaps another output or an input.
  void apart(std::initializer_list<NamedView> outputs,
             std::initializer_list<NamedView> inputs) const;
  void at_least(const char* name, int64_t value, int64_t least) const;
  // Channel counts of a convolution, and sizes whose product is a weight that fits any memory.
  void groups(int64_t groups, int64_t c_in, int64_t c_out, int64_t n_offsets = 1) const;
  // CSR starts: ascending from 0 to `total`.
  void starts(const char* name, const TensorView& t, int64_t total) const;
  // CSR starts of a part: ascending within [0, total].
  void starts_within(const char* name, const TensorView& t, int64_t total) const;
  // every element (int32 or int64) in [low, high)
  void rows(const char* name, const TensorView& t, int64_t low, int64_t high) const;
  // float32, float64, bfloat16 or float16
  DType floating(const char* name, const TensorView& t) const;
};

inline std::string shape_text(const int64_t* shape, int n) {
  std::string text = "(";
  for (int i = 0; i < n; ++i)
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + ")";
}

// What values of a floating dtype are summed in: its own, or float32.
constexpr DType acc_of(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

// Calls f(T{}) with float, double, bf16 or f16.
template <class F>
void for_dtype(DType dtype, const F& f) {
  if (dtype == DType::kFloat64)
    f(double{});
  else if (dtype == DType::kBFloat16)
    f(bf16{});
  else if (dtype == DType::kFloat16)
    f(f16{});
  else
    f(float{});
}

}  // namespace ds

namespace pybind11::detail {

template <>
struct type_caster<ds::Arg> {
  PYBIND11_TYPE_CASTER(ds::Arg, const_name("torch.Tensor"));
  bool load(handle source, bool) {
    ds::view_of(source, &value.view);
    return true;
  }
};

template <>
struct type_caster<ds::OptionalArg> {
  PYBIND11_TYPE_CASTER(ds::OptionalArg, const_name("torch.Tensor | None"));
  bool load(handle source, bool) {
    value.given = !source.is_none();
    if (value.given) ds::view_of(source, &value.view);
    return true;
  }
};

}  // namespace pybind11::detail
