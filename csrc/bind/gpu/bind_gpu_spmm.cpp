#include "bind/gpu/gpu.h"
#include "cuda/spmm/spmm.h"

namespace ds {
namespace {

namespace py = pybind11;

struct PlanArgs {
  const Arg &slabs, &starts, &columns;
  int64_t n_rows, n_columns;
};

gpu::SpmmPlan plan_of(const Check& check, const PlanArgs& args) {
  constexpr int64_t kMost = int64_t{1} << 31;
  check.at_least("n_rows", args.n_rows, 0);
  check.at_least("n_columns", args.n_columns, 1);
  if (args.n_rows >= kMost || args.n_columns >= kMost)
    throw py::value_error(std::string(check.operation) +
                          ": n_rows and n_columns must be below 2^31; split the matrix");
  gpu::SpmmPlan plan{nullptr, nullptr, nullptr, args.n_rows, args.n_columns, 0};
  const int64_t n_slabs = n_slabs_of(plan);
  check.tensor("slabs", args.slabs.view, DType::kInt32, {n_slabs});
  check.tensor("starts", args.starts.view, DType::kInt32,
               {n_slabs * n_panels_of(plan) * gpu::kSlabRows + 1});
  check.tensor("columns", args.columns.view, DType::kInt16, {-1, gpu::kChunk});
  plan.n_chunks = args.columns.view.shape[0];
  if (plan.n_chunks >= kMost - 64)
    throw py::value_error(std::string(check.operation) + ": too many weights; split the matrix");
  plan.slabs = args.slabs.view.as<int32_t>();
  plan.starts = args.starts.view.as<int32_t>();
  plan.columns = args.columns.view.as<uint16_t>();
  return plan;
}

// What weights may be for sums of `acc`: its dtype, or widened to float32.
DType value_dtype(const Check& check, const Arg& values, const OptionalArg& scales, DType acc,
                  int64_t n_values, int64_t n_rows) {
  const DType dtype = values.view.dtype;
  const bool is_coded =
      acc == DType::kFloat32 &&
      (dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kInt8);
  check.tensor("values", values.view, is_coded ? dtype : acc, {n_values});
  if (dtype == DType::kInt8 && !scales.given)
    throw py::value_error(std::string(check.operation) + ": int8 values need scales");
  if (scales.given) check.tensor("scales", scales.view, DType::kFloat32, {n_rows});
  return is_coded ? dtype : acc;
}

const float* scales_of(const OptionalArg& scales, DType values) {
  return values == DType::kInt8 ? scales.view.as<float>() : nullptr;
}

void spmm_lanes(const Arg& x, const Arg& lanes) {
  const Check check = gpu_check("spmm_lanes", x);
  const DType dtype = check.floating("x", x.view);
  check.tensor("x", x.view, dtype, {-1, -1});
  const int64_t m = x.view.shape[0], n_columns = x.view.shape[1];
  check.tensor("lanes", lanes.view, acc_of(dtype), {n_columns, gpu::padded_rows(m)});
  check.apart({{"lanes", lanes.view}}, {{"x", x.view}});
  on_device(check.operation, x.view, [&](const gpu::Stream& stream) {
    return gpu::to_lanes(stream, x.view.data, dtype, m, n_columns, lanes.view.data);
  });
}

void spmm_pack(const Arg& values, const OptionalArg& kept, const Arg& source, const Arg& packed) {
  const Check check = gpu_check("spmm_pack", values);
  const DType dtype = values.view.dtype;
  check.tensor("values", values.view, dtype, {-1});
  if (kept.given) check.tensor("kept", kept.view, DType::kInt64, {-1});
  check.tensor("source", source.view, DType::kInt32, {-1});
  check.tensor("packed", packed.view, dtype, {source.view.shape[0]});
  check.apart({{"packed", packed.view}},
              {{"values", values.view}, {"kept", kept.view}, {"source", source.view}});
  const int64_t n_values = values.view.shape[0];
  on_device(check.operation, values.view, [&](const gpu::Stream& stream) {
    return gpu::pack_values(
        stream,
        {values.view.data, kept.view.as<int64_t>(), source.view.as<int32_t>(), packed.view.data,
         source.view.shape[0], kept.given ? kept.view.shape[0] : n_values, n_values},
        bytes_of(dtype));
  });
}

void spmm(const Arg& slabs, const Arg& starts, const Arg& columns, int64_t n_columns,
          const Arg& values, const OptionalArg& scales, const Arg& lanes, const OptionalArg& bias,
          const Arg& y) {
  const Check check = gpu_check("spmm", y);
  const DType dtype = check.floating("y", y.view), acc = acc_of(dtype);
  check.tensor("y", y.view, dtype, {-1, -1});
  const int64_t m = y.view.shape[0], n_rows = y.view.shape[1];
  const gpu::SpmmPlan plan = plan_of(check, {slabs, starts, columns, n_rows, n_columns});
  const DType stored = value_dtype(check, values, scales, acc, plan.n_chunks * gpu::kChunk, n_rows);
  check.tensor("lanes", lanes.view, acc, {n_columns, gpu::padded_rows(m)});
  if (bias.given) check.tensor("bias", bias.view, acc, {n_rows});
  check.apart({{"y", y.view}}, {{"lanes", lanes.view},
                                {"values", values.view},
                                {"bias", bias.view},
                                {"scales", scales.view},
                                {"columns", columns.view},
                                {"starts", starts.view},
                                {"slabs", slabs.view}});
  on_device(check.operation, y.view, [&](const gpu::Stream& stream) {
    return gpu::spmm(stream, {plan, values.view.data, stored, scales_of(scales, stored),
                              lanes.view.data, bias.view.data, y.view.data, dtype, m});
  });
}

void sddmm(const Arg& slabs, const Arg& starts, const Arg& columns, int64_t n_rows,
           int64_t n_columns, const Arg& source, const OptionalArg& kept, const Arg& dy,
           const Arg& x, int64_t m, const Arg& partial, const Arg& out) {
  const Check check = gpu_check("sddmm", out);
  const DType dtype = check.floating("out", out.view), acc = acc_of(dtype);
  check.at_least("m", m, 0);
  const gpu::SpmmPlan plan = plan_of(check, {slabs, starts, columns, n_rows, n_columns});
  const int64_t n_entries = plan.n_chunks * gpu::kChunk;
  check.tensor("source", source.view, DType::kInt32, {n_entries});
  if (kept.given) check.tensor("kept", kept.view, DType::kInt64, {-1});
  check.tensor("dy", dy.view, acc, {n_rows, gpu::padded_rows(m)});
  check.tensor("x", x.view, acc, {n_columns, gpu::padded_rows(m)});
  check.tensor("partial", partial.view, acc, {gpu::sddmm_splits(m), n_entries});
  check.tensor("out", out.view, dtype, {-1});
  check.apart({{"out", out.view}, {"partial", partial.view}}, {{"dy", dy.view},
                                                               {"x", x.view},
                                                               {"columns", columns.view},
                                                               {"starts", starts.view},
                                                               {"slabs", slabs.view},
                                                               {"source", source.view},
                                                               {"kept", kept.view}});
  const int64_t n_out = out.view.shape[0], n_kept = kept.given ? kept.view.shape[0] : n_out;
  on_device(check.operation, out.view, [&](const gpu::Stream& stream) {
    return gpu::sddmm(stream,
                      {plan, source.view.as<int32_t>(), kept.view.as<int64_t>(), dy.view.data,
                       x.view.data, partial.view.data, out.view.data, dtype, m, n_kept, n_out});
  });
}

void spmm_gemv(const Arg& row_start, const Arg& columns, const Arg& values,
               const OptionalArg& scales, const Arg& x, const OptionalArg& bias, const Arg& y) {
  const Check check = gpu_check("spmm", y);
  const DType dtype = check.floating("y", y.view), acc = acc_of(dtype);
  check.tensor("y", y.view, dtype, {-1, -1});
  const int64_t m = y.view.shape[0], n_rows = y.view.shape[1];
  check.tensor("x", x.view, dtype, {m, -1});
  const int64_t n_columns = x.view.shape[1], n_kept = columns.view.shape[0];
  if (m > gpu::kMostGemvRows || n_columns > gpu::kMostGemvColumns)
    throw py::value_error("spmm: one-row kernel must have at most 4 rows and 65536 columns, got " +
                          shape_text(x.view.shape, 2) + "; use the plan of the matrix");
  check.tensor("row_start", row_start.view, DType::kInt64, {n_rows + 1});
  check.tensor("columns", columns.view, DType::kInt16, {-1});
  const DType stored = value_dtype(check, values, scales, acc, n_kept, n_rows);
  if (bias.given) check.tensor("bias", bias.view, acc, {n_rows});
  check.apart({{"y", y.view}}, {{"x", x.view},
                                {"values", values.view},
                                {"bias", bias.view},
                                {"scales", scales.view},
                                {"columns", columns.view},
                                {"row_start", row_start.view}});
  on_device(check.operation, y.view, [&](const gpu::Stream& stream) {
    return gpu::gemv(stream, {row_start.view.as<int64_t>(), columns.view.as<uint16_t>(),
                              values.view.data, stored, scales_of(scales, stored), x.view.data,
                              bias.view.data, y.view.data, dtype, m, n_rows, n_columns, n_kept});
  });
}

}  // namespace

void bind_gpu_spmm(py::module_& m) {
  m.attr("SPMM_PANEL_COLUMNS") = gpu::kPanelColumns;
  m.attr("SPMM_SLAB_ROWS") = gpu::kSlabRows;
  m.attr("SPMM_CHUNK") = gpu::kChunk;
  m.def("spmm_padded_rows", &gpu::padded_rows, py::arg("m"));
  m.def("spmm_lanes", &spmm_lanes, py::arg("x"), py::arg("lanes"));
  m.def("spmm_pack", &spmm_pack, py::arg("values"), py::arg("kept"), py::arg("source"),
        py::arg("packed"));
  m.def("spmm", &spmm, py::arg("slabs"), py::arg("starts"), py::arg("columns"),
        py::arg("n_columns"), py::arg("values"), py::arg("scales"), py::arg("lanes"),
        py::arg("bias"), py::arg("y"));
  m.attr("SPMM_GEMV_ROWS") = gpu::kMostGemvRows;
  m.attr("SPMM_GEMV_COLUMNS") = gpu::kMostGemvColumns;
  m.def("spmm_gemv", &spmm_gemv, py::arg("row_start"), py::arg("columns"), py::arg("values"),
        py::arg("scales"), py::arg("x"), py::arg("bias"), py::arg("y"));
  m.def("sddmm_splits", &gpu::sddmm_splits, py::arg("m"));
  m.def("sddmm", &sddmm, py::arg("slabs"), py::arg("starts"), py::arg("columns"), py::arg("n_rows"),
        py::arg("n_columns"), py::arg("source"), py::arg("kept"), py::arg("dy"), py::arg("x"),
        py::arg("m"), py::arg("partial"), py::arg("out"));
}

}  // namespace ds
