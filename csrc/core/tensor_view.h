// A typed, shaped, strided view of somebody else's memory. Owns nothing.
#pragma once
#include <cstdint>

namespace ds {

enum class DType : uint8_t {
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUInt8,
  kUInt16,
  kFloat32,
  kFloat64,
  kBFloat16,
  kFloat16,
  kOther
};

constexpr int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::kInt8:
    case DType::kUInt8:
      return 1;
    case DType::kInt16:
    case DType::kUInt16:
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kInt32:
    case DType::kFloat32:
      return 4;
    default:
      return 8;
  }
}

constexpr int kMaxDims = 8;

struct TensorView {
  void* data = nullptr;
  int32_t device_type = 0;  // dlpack::DeviceType
  int32_t device_id = 0;
  DType dtype = DType::kOther;
  int32_t n_dims = 0;
  int64_t shape[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t n_elements() const {
    int64_t n = 1;
    for (int i = 0; i < n_dims; ++i) n *= shape[i];
    return n;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int i = n_dims - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return n_elements() == 0;
      expected *= shape[i];
    }
    return true;
  }
};

}  // namespace ds
