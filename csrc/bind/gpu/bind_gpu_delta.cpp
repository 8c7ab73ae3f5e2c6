#include "bind/gpu/gpu.h"
#include "cuda/spmm/delta_gemv.h"

namespace ds {
namespace {

namespace py = pybind11;
using Tiling = gpu::DeltaTiling;

void check_aligned(const Check& check, const char* name, const Arg& t, uintptr_t bytes) {
  if (reinterpret_cast<uintptr_t>(t.view.data) % bytes != 0)
    throw py::value_error(std::string(check.operation) + ": " + name + " must begin at " +
                          std::to_string(bytes) + " bytes; clone it");
}

void delta_gemv(const Arg& x, const Arg& gaps, const Arg& values, const Arg& starts,
                const OptionalArg& bias, const Arg& y) {
  const Check check = gpu_check("delta_gemv", x);
  const DType dtype = x.view.dtype;
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16)
    throw py::type_error("delta_gemv: x must be bfloat16 or float16; convert it");
  check.tensor("x", x.view, dtype, {-1, -1});
  check.tensor("y", y.view, dtype, {x.view.shape[0], -1});
  const int64_t m = x.view.shape[0], n_columns = x.view.shape[1], n_rows = y.view.shape[1];
  if (m > Tiling::kMostRows)
    throw py::value_error("delta_gemv: x must have at most " + std::to_string(Tiling::kMostRows) +
                          " rows, got " + std::to_string(m) + "; use bitmap_spmm");
  if (n_columns >= int64_t{1} << 31)
    throw py::value_error("delta_gemv: x must have less than 2^31 columns, got " +
                          std::to_string(n_columns) + "; split the matrix");
  check.tensor("gaps", gaps.view, DType::kUInt8, {-1, Tiling::kUnit});
  const int64_t n_units = gaps.view.shape[0];
  check.tensor("values", values.view, dtype, {n_units, Tiling::kUnit});
  check.tensor("starts", starts.view, DType::kInt32, {n_rows + 1});
  if (bias.given) check.tensor("bias", bias.view, DType::kFloat32, {n_rows});
  check_aligned(check, "gaps", gaps, Tiling::kUnit);
  check_aligned(check, "values", values, 2 * Tiling::kUnit);
  check.apart({{"y", y.view}}, {{"x", x.view},
                                {"gaps", gaps.view},
                                {"values", values.view},
                                {"starts", starts.view},
                                {"bias", bias.view}});
  const gpu::DeltaProduct p{gaps.view.as<uint8_t>(),
                            values.view.data,
                            starts.view.as<int32_t>(),
                            x.view.data,
                            bias.given ? bias.view.as<float>() : nullptr,
                            y.view.data,
                            m,
                            n_rows,
                            n_columns,
                            n_units};
  on_device(check.operation, x.view, [&](const gpu::Stream& stream) {
    return dtype == DType::kBFloat16 ? gpu::delta_gemv<bf16>(stream, p)
                                     : gpu::delta_gemv<f16>(stream, p);
  });
}

}  // namespace

void bind_gpu_delta(py::module_& m) {
  m.attr("DELTA_GEMV_ROWS") = static_cast<int>(Tiling::kMostRows);
  m.def("delta_gemv", &delta_gemv, py::arg("x"), py::arg("gaps"), py::arg("values"),
        py::arg("starts"), py::arg("bias"), py::arg("y"));
}

}  // namespace ds
