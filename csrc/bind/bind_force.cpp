#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "cpu/lowrank/force.h"

namespace ds {
namespace {

namespace py = pybind11;

constexpr Check kCheck{"constant_forces"};

int64_t workspace_of(bool is_double, int64_t n, int64_t d, int64_t table_rows, int n_threads) {
  kCheck.at_least("n", n, 1);
  kCheck.at_least("d", d, 1);
  kCheck.at_least("table_rows", table_rows, 1);
  kCheck.at_least("n_threads", n_threads, 1);
  if (table_rows > n)
    throw py::value_error("constant_forces: table_rows must be at most the " + std::to_string(n) +
                          " filters, got " + std::to_string(table_rows));
  return is_double ? force_workspace<double>(n, d, table_rows, n_threads)
                   : force_workspace<float>(n, d, table_rows, n_threads);
}

void constant_forces_checked(const Arg& unit, const Arg& lengths, int64_t table_rows,
                             const Arg& workspace, const Arg& out, int n_threads) {
  const bool is_double = unit.view.dtype == DType::kFloat64;
  const DType dtype = is_double ? DType::kFloat64 : DType::kFloat32;
  kCheck.tensor("unit", unit.view, dtype, {-1, -1});
  const int64_t n = unit.view.shape[0], d = unit.view.shape[1];
  const int64_t size = workspace_of(is_double, n, d, table_rows, n_threads);
  kCheck.tensor("lengths", lengths.view, dtype, {n});
  kCheck.tensor("out", out.view, dtype, {n, d});
  kCheck.tensor("workspace", workspace.view, dtype, {size});
  kCheck.apart({{"out", out.view}, {"workspace", workspace.view}},
               {{"unit", unit.view}, {"lengths", lengths.view}});
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) >= 4)
      constant_forces<T>(
          {unit.view.as<T>(), n, d, lengths.view.as<T>(), table_rows, out.view.as<T>()},
          workspace.view.as<T>(), n_threads);
  });
}

}  // namespace

void bind_force(py::module_& m) {
  m.def("force_workspace", &workspace_of);
  m.def("constant_forces", &constant_forces_checked);
}

}  // namespace ds
