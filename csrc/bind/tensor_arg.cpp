#include "bind/tensor_arg.h"

#include <cstring>
#include <limits>

#include "core/dlpack.h"

namespace ds {
namespace {

namespace py = pybind11;

DType dtype_of(uint8_t code, int bits) {
  if (code == dlpack::kInt && bits == 8) return DType::kInt8;
  if (code == dlpack::kInt && bits == 16) return DType::kInt16;
  if (code == dlpack::kInt && bits == 32) return DType::kInt32;
  if (code == dlpack::kInt && bits == 64) return DType::kInt64;
  if (code == dlpack::kUInt && bits == 8) return DType::kUInt8;
  if (code == dlpack::kUInt && bits == 16) return DType::kUInt16;
  if (code == dlpack::kFloat && bits == 32) return DType::kFloat32;
  if (code == dlpack::kFloat && bits == 64) return DType::kFloat64;
  if (code == dlpack::kBfloat && bits == 16) return DType::kBFloat16;
  if (code == dlpack::kFloat && bits == 16) return DType::kFloat16;
  return DType::kOther;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kInt8:
      return "int8";
    case DType::kInt16:
      return "int16";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
    case DType::kUInt8:
      return "uint8";
    case DType::kUInt16:
      return "uint16";
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    default:
      return "another dtype";
  }
}

// The table of the two tensor types seen last (Tensor and Parameter): types live as long as torch
// does.
PyTypeObject* types[2] = {};
const dlpack::ExchangeApi* apis[2] = {};

const dlpack::ExchangeApi* last_exchange_api() {
  return apis[0];
}

const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  for (int i = 0; i < 2; ++i)
    if (types[i] == type) return apis[i];
  PyObject* capsule =
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  const dlpack::ExchangeApi* api = nullptr;
  if (capsule != nullptr) {
    api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  if (api != nullptr &&
      (api->header.version.major != 1 || api->dltensor_from_py_object_no_sync == nullptr))
    api = nullptr;
  if (api != nullptr) {
    types[1] = types[0];
    apis[1] = apis[0];
    types[0] = type;
    apis[0] = api;
  }
  return api;
}

[[noreturn]] void not_a_tensor(py::handle object) {
  throw py::type_error(std::string("doublesparse: argument must be a torch.Tensor, got ") +
                       Py_TYPE(object.ptr())->tp_name);
}

// Older torch: the same facts from Python attributes (a few microseconds a tensor).
void view_by_attributes(py::handle object, TensorView* view) {
  if (!py::hasattr(object, "data_ptr") || !py::hasattr(object, "stride")) not_a_tensor(object);
  const std::string device = py::str(object.attr("device").attr("type"));
  view->device_type = device == "cpu" ? dlpack::kCpu : device == "cuda" ? dlpack::kCuda : 0;
  if (view->device_type == 0)
    throw std::runtime_error("doublesparse: tensors on device '" + device + "' are not supported");
  const py::object index = object.attr("device").attr("index");
  view->device_id = index.is_none() ? 0 : index.cast<int32_t>();
  const std::string dtype = py::str(object.attr("dtype"));
  view->dtype = dtype == "torch.float32"    ? DType::kFloat32
                : dtype == "torch.float64"  ? DType::kFloat64
                : dtype == "torch.int8"     ? DType::kInt8
                : dtype == "torch.int16"    ? DType::kInt16
                : dtype == "torch.int32"    ? DType::kInt32
                : dtype == "torch.int64"    ? DType::kInt64
                : dtype == "torch.uint8"    ? DType::kUInt8
                : dtype == "torch.uint16"   ? DType::kUInt16
                : dtype == "torch.bfloat16" ? DType::kBFloat16
                : dtype == "torch.float16"  ? DType::kFloat16
                                            : DType::kOther;
  const py::tuple shape(object.attr("shape")), strides(object.attr("stride")());
  if (shape.size() > kMaxDims)
    throw py::value_error("doublesparse: a tensor has more than 8 dimensions");
  view->n_dims = static_cast<int32_t>(shape.size());
  for (int i = 0; i < view->n_dims; ++i) {
    view->shape[i] = shape[i].cast<int64_t>();
    view->strides[i] = strides[i].cast<int64_t>();
  }
  view->data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
}

// Tensors of torch.func's transforms have no storage, which torch says with its own stack trace.
[[noreturn]] void not_borrowed() {
  const py::error_already_set error;
  if (std::strstr(error.what(), "storage") == nullptr) throw error;
  throw std::runtime_error(
      "doublesparse: argument must be a tensor with data, got one without storage; torch.func "
      "transforms (vmap, grad, jvp) are not supported, use torch.autograd");
}

}  // namespace

void view_of(py::handle object, TensorView* view) {
  const dlpack::ExchangeApi* api = exchange_api(Py_TYPE(object.ptr()));
  if (api == nullptr) return view_by_attributes(object, view);
  dlpack::Tensor t;
  if (api->dltensor_from_py_object_no_sync(object.ptr(), &t) != 0) not_borrowed();
  if (t.ndim > kMaxDims) throw py::value_error("doublesparse: a tensor has more than 8 dimensions");
  view->data = static_cast<char*>(t.data) + t.byte_offset;
  view->device_type = t.device.device_type;
  view->device_id = t.device.device_id;
  view->dtype = t.dtype.lanes == 1 ? dtype_of(t.dtype.code, t.dtype.bits) : DType::kOther;
  view->n_dims = t.ndim;
  int64_t expected = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    view->shape[i] = t.shape[i];
    view->strides[i] = t.strides ? t.strides[i] : expected;
    expected *= t.shape[i];
  }
}

void Check::tensor(const char* name, const TensorView& t, DType dtype,
                   std::initializer_list<int64_t> shape) const {
  const std::string where = std::string(operation) + ": " + name;
  if (t.device_type != device_type)
    throw std::runtime_error(where + " must be on " +
                             (device_type == dlpack::kCpu ? "the CPU" : "a CUDA device"));
  if (device_type != dlpack::kCpu && t.device_id != device_id)
    throw std::runtime_error(where + " must be on cuda:" + std::to_string(device_id) +
                             " like the other operands, got cuda:" + std::to_string(t.device_id));
  if (t.dtype != dtype)
    throw py::type_error(where + " must be " + name_of(dtype) + ", got " + name_of(t.dtype));
  bool fits = t.n_dims == static_cast<int>(shape.size());
  for (int i = 0; fits && i < t.n_dims; ++i)
    fits = shape.begin()[i] < 0 || shape.begin()[i] == t.shape[i];
  if (!fits)
    throw py::value_error(where + " must have shape " +
                          shape_text(shape.begin(), static_cast<int>(shape.size())) + ", got " +
                          shape_text(t.shape, t.n_dims));
  if (!t.is_contiguous()) throw py::value_error(where + " must be contiguous; use .contiguous()");
  if (t.data == nullptr && t.n_elements() > 0) throw py::value_error(where + " has no storage");
}

void* current_stream(int device_id) {
  const dlpack::ExchangeApi* api = last_exchange_api();
  void* stream = nullptr;
  if (api != nullptr && api->current_work_stream != nullptr &&
      api->current_work_stream(dlpack::kCuda, device_id, &stream) == 0)
    return stream;
  PyErr_Clear();
  const py::object of_torch = py::module_::import("torch").attr("cuda").attr("current_stream");
  return reinterpret_cast<void*>(of_torch(device_id).attr("cuda_stream").cast<uintptr_t>());
}

void Check::disjoint(const char* name, const TensorView& out, const char* other_name,
                     const TensorView& other) const {
  const auto bytes = [](const TensorView& t) { return t.n_elements() * bytes_of(t.dtype); };
  const char* a = out.as<char>();
  const char* b = other.as<char>();
  if (a < b + bytes(other) && b < a + bytes(out))
    throw py::value_error(std::string(operation) + ": " + name + " overlaps " + other_name);
}

void Check::apart(std::initializer_list<NamedView> outputs,
                  std::initializer_list<NamedView> inputs) const {
  for (const NamedView* out = outputs.begin(); out != outputs.end(); ++out) {
    for (const NamedView* other = out + 1; other != outputs.end(); ++other)
      disjoint(out->name, out->view, other->name, other->view);
    for (const NamedView& in : inputs)
      if (in.view.data != nullptr) disjoint(out->name, out->view, in.name, in.view);
  }
}

void Check::at_least(const char* name, int64_t value, int64_t least) const {
  if (value < least)
    throw py::value_error(std::string(operation) + ": " + name + " must be at least " +
                          std::to_string(least) + ", got " + std::to_string(value));
}

void Check::groups(int64_t groups, int64_t c_in, int64_t c_out, int64_t n_offsets) const {
  at_least("groups", groups, 1);
  at_least("c_in", c_in, 1);
  at_least("c_out", c_out, 1);
  at_least("n_offsets", n_offsets, 1);
  constexpr int64_t kMost = int64_t{1} << 20;
  if (c_in > kMost || c_out > kMost || n_offsets > kMost)
    throw py::value_error(
        std::string(operation) + ": channels and kernel volume must be at most 2^20, got " +
        std::to_string(c_in) + ", " + std::to_string(c_out) + " and " + std::to_string(n_offsets));
  if (c_in % groups != 0 || c_out % groups != 0)
    throw py::value_error(std::string(operation) + ": groups = " + std::to_string(groups) +
                          " must divide " + std::to_string(c_in) + " input and " +
                          std::to_string(c_out) + " output channels");
}

void Check::starts(const char* name, const TensorView& t, int64_t total) const {
  const int64_t* v = t.as<int64_t>();
  const int64_t n = t.n_elements();
  bool good = n > 0 && v[0] == 0 && v[n - 1] == total;
  for (int64_t i = 1; good && i < n; ++i) good = v[i - 1] <= v[i];
  if (!good)
    throw py::value_error(std::string(operation) + ": " + name + " must ascend from 0 to " +
                          std::to_string(total));
}

void Check::starts_within(const char* name, const TensorView& t, int64_t total) const {
  const int64_t* v = t.as<int64_t>();
  const int64_t n = t.n_elements();
  bool good = n > 0 && v[0] >= 0 && v[n - 1] <= total;
  for (int64_t i = 1; good && i < n; ++i) good = v[i - 1] <= v[i];
  if (!good)
    throw py::value_error(std::string(operation) + ": " + name + " must ascend within 0 and " +
                          std::to_string(total));
}

template <class Int>
void rows_within(const std::string& where, const Int* v, int64_t n, int64_t low, int64_t high) {
  Int least = std::numeric_limits<Int>::max(), most = std::numeric_limits<Int>::min();
  for (int64_t i = 0; i < n; ++i) {
    least = v[i] < least ? v[i] : least;
    most = v[i] > most ? v[i] : most;
  }
  if (n > 0 && (least < low || most >= high))
    throw py::value_error(where + " must lie in [" + std::to_string(low) + ", " +
                          std::to_string(high) + "), got " +
                          std::to_string(least < low ? least : most));
}

void Check::rows(const char* name, const TensorView& t, int64_t low, int64_t high) const {
  const std::string where = std::string(operation) + ": " + name;
  if (t.dtype == DType::kInt64)
    rows_within(where, t.as<int64_t>(), t.n_elements(), low, high);
  else
    rows_within(where, t.as<int32_t>(), t.n_elements(), low, high);
}

DType Check::floating(const char* name, const TensorView& t) const {
  if (t.dtype != DType::kFloat32 && t.dtype != DType::kFloat64 && t.dtype != DType::kBFloat16 &&
      t.dtype != DType::kFloat16)
    throw py::type_error(std::string(operation) + ": " + name +
                         " must be float32, float64, bfloat16 or float16, got " + name_of(t.dtype));
  return t.dtype;
}

}  // namespace ds
