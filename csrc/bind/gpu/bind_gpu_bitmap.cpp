#include "bind/gpu/gpu.h"
#include "cuda/spmm/bitmap_spmm.h"

namespace ds {
namespace {

namespace py = pybind11;
using Tiling = gpu::BitmapTiling;

DType half_of(const Check& check, const char* name, const Arg& t) {
  const DType dtype = t.view.dtype;
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    throw py::type_error(std::string(check.operation) + ": " + name +
                         " must be bfloat16 or float16; convert it");
  return dtype;
}

gpu::BitmapMatrix matrix_of(const Check& check, const Arg& words, const Arg& values,
                            const Arg& starts, DType dtype, int64_t n_rows, int64_t n_columns) {
  const int64_t n_tiles =
      gpu::ceil_div(n_rows, Tiling::kRows) * gpu::ceil_div(n_columns, Tiling::kColumns);
  check.tensor("words", words.view, DType::kInt32, {n_tiles, Tiling::kWords});
  check.tensor("values", values.view, dtype, {-1, Tiling::kUnit});
  check.tensor("starts", starts.view, DType::kInt32, {n_tiles + 1});
  return {words.view.as<uint32_t>(), values.view.data, starts.view.as<int32_t>(), n_rows, n_columns,
          values.view.shape[0]};
}

void bitmap_spmm(const Arg& x, const Arg& words, const Arg& values, const Arg& starts,
                 const OptionalArg& bias, int64_t most_values, const Arg& partial, const Arg& y) {
  const Check check = gpu_check("bitmap_spmm", x);
  const DType dtype = half_of(check, "x", x);
  check.tensor("x", x.view, dtype, {-1, -1});
  check.tensor("y", y.view, dtype, {x.view.shape[0], -1});
  const int64_t m = x.view.shape[0], n_columns = x.view.shape[1], n_rows = y.view.shape[1];
  if (n_columns % Tiling::kUnit != 0 || reinterpret_cast<uintptr_t>(x.view.data) % 16 != 0)
    throw py::value_error("bitmap_spmm: x must have rows of 16 bytes each, aligned, got " +
                          std::to_string(n_columns) + " columns; pad it");
  gpu::BitmapProduct p{};
  static_cast<gpu::BitmapMatrix&>(p) =
      matrix_of(check, words, values, starts, dtype, n_rows, n_columns);
  if (bias.given) check.tensor("bias", bias.view, DType::kFloat32, {n_rows});
  check.tensor("partial", partial.view, DType::kFloat32, {-1, m, n_rows});
  check.apart({{"y", y.view}, {"partial", partial.view}}, {{"x", x.view},
                                                           {"words", words.view},
                                                           {"values", values.view},
                                                           {"starts", starts.view},
                                                           {"bias", bias.view}});
  if (partial.view.shape[0] < 1 || partial.view.shape[0] > 65535)
    throw py::value_error("bitmap_spmm: partial must have 1 to 65535 parts, got " +
                          std::to_string(partial.view.shape[0]) + "; use bitmap_parts");
  p.x = x.view.data;
  p.bias = bias.given ? bias.view.as<float>() : nullptr;
  p.partial = partial.view.as<float>();
  p.y = y.view.data;
  p.m = m;
  p.most_values = static_cast<int>(most_values < Tiling::kValues ? most_values : Tiling::kValues);
  p.n_parts = static_cast<int>(partial.view.shape[0]);
  on_device(check.operation, x.view, [&](const gpu::Stream& stream) {
    return dtype == DType::kBFloat16 ? gpu::bitmap_spmm<bf16>(stream, p)
                                     : gpu::bitmap_spmm<f16>(stream, p);
  });
}

void bitmap_unpack(const Arg& words, const Arg& values, const Arg& starts, const Arg& out) {
  const Check check = gpu_check("bitmap_unpack", out);
  const DType dtype = half_of(check, "out", out);
  check.tensor("out", out.view, dtype, {-1, -1});
  const gpu::BitmapMatrix w =
      matrix_of(check, words, values, starts, dtype, out.view.shape[0], out.view.shape[1]);
  if (reinterpret_cast<uintptr_t>(out.view.data) % 4 != 0)
    throw py::value_error("bitmap_unpack: out must begin at 4 bytes; clone it");
  check.apart({{"out", out.view}},
              {{"words", words.view}, {"values", values.view}, {"starts", starts.view}});
  on_device(check.operation, out.view, [&](const gpu::Stream& stream) {
    return gpu::bitmap_unpack(stream, w, out.view.data);
  });
}

int bitmap_parts(const Arg& x, int64_t n_rows) {
  return gpu::bitmap_parts(stream_of(x), x.view.shape[0], n_rows, x.view.shape[1]);
}

}  // namespace

void bind_gpu_bitmap(py::module_& m) {
  m.def("bitmap_spmm", &bitmap_spmm, py::arg("x"), py::arg("words"), py::arg("values"),
        py::arg("starts"), py::arg("bias"), py::arg("most_values"), py::arg("partial"),
        py::arg("y"));
  m.def("bitmap_unpack", &bitmap_unpack, py::arg("words"), py::arg("values"), py::arg("starts"),
        py::arg("out"));
  m.def("bitmap_parts", &bitmap_parts, py::arg("x"), py::arg("n_rows"));
}

}  // namespace ds
