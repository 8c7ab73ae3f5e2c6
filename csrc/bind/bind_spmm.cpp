#include <algorithm>

#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "bind/tiles.h"
#include "cpu/spmm/spmm.h"

namespace ds {

namespace py = pybind11;

TilesObject::TilesObject(py::object starts, py::object columns, int64_t n_rows, int64_t n_columns,
                         int64_t block_columns, int64_t unit_rows, py::object bits)
    : starts_(std::move(starts)), columns_(std::move(columns)), bits_(std::move(bits)) {
  const Check check{"Tiles"};
  constexpr int64_t kMost = int64_t{1} << 31;
  check.at_least("n_rows", n_rows, 0);
  check.at_least("n_columns", n_columns, 1);
  check.at_least("block_columns", block_columns, 1);
  if (n_rows >= kMost || n_columns >= kMost || block_columns > (1 << 15))
    throw py::value_error(
        "Tiles: n_rows and n_columns must be below 2^31 and block_columns at most 2^15");
  if (unit_rows != 1 && unit_rows != 4 && unit_rows != 8 && unit_rows != 16)
    throw py::value_error("Tiles: unit_rows must be 1, 4, 8 or 16, got " +
                          std::to_string(unit_rows));
  if (n_rows % unit_rows != 0) throw py::value_error("Tiles: unit_rows must divide n_rows");
  tiles_ = {nullptr, nullptr, n_rows, n_columns, block_columns, unit_rows};
  Arg starts_view, columns_view;
  view_of(starts_, &starts_view.view);
  view_of(columns_, &columns_view.view);
  const int64_t n_segments = tiles_.n_blocks() * tiles_.n_units();
  check.tensor("starts", starts_view.view, DType::kInt64, {n_segments + 1});
  check.tensor("columns", columns_view.view, DType::kInt16, {-1});
  check.starts("starts", starts_view.view, columns_view.view.shape[0]);
  tiles_.starts = starts_view.view.as<int64_t>();
  tiles_.columns = columns_view.view.as<uint16_t>();
  for (int64_t b = 0; b < tiles_.n_blocks(); ++b) {
    const int64_t limit = std::min(block_columns, n_columns - b * block_columns);
    bool good = true;
    for (int64_t s = b * tiles_.n_units(); s < (b + 1) * tiles_.n_units(); ++s)
      for (int64_t j = tiles_.starts[s]; j < tiles_.starts[s + 1]; ++j)
        good &= tiles_.columns[j] < limit &&
                (j == tiles_.starts[s] || tiles_.columns[j - 1] < tiles_.columns[j]);
    if (!good)
      throw py::value_error("Tiles: columns must ascend within their block in every segment");
  }
  if (bits_.is_none()) return;
  if (unit_rows != kMaxUnitRows) throw py::value_error("Tiles: bits need unit_rows 16");
  Arg bits_view;
  view_of(bits_, &bits_view.view);
  check.tensor("bits", bits_view.view, DType::kInt16, {n_entries()});
  bits_data_ = bits_view.view.as<uint16_t>();
  n_values_ = 0;
  for (int64_t s = 0; s < n_segments; ++s) {
    places_.push_back(n_values_);
    for (int64_t j = tiles_.starts[s]; j < tiles_.starts[s + 1]; ++j)
      n_values_ += __builtin_popcount(bits_data_[j]);
  }
}

void TilesObject::check_disjoint(const Check& check, const char* name,
                                 const TensorView& out) const {
  for (const py::object* tensor : {&starts_, &columns_, &bits_}) {
    if (tensor->is_none()) continue;
    TensorView view;
    view_of(*tensor, &view);
    check.disjoint(name, out, "the tiles", view);
  }
}

namespace {

// What values (n_entries * unit_rows) may be for sums of `acc`: its dtype, or decoded to float32.
Values values_of(const Check& check, const TilesObject& tiles, const Arg& values,
                 const OptionalArg& scales, DType acc) {
  const DType dtype = values.view.dtype;
  if (tiles.n_values() >= 0) {
    check.tensor("values", values.view, acc, {tiles.n_values() + kExpandPadding});
    return {values.view.data, nullptr, ValueKind::kBitmask, tiles.bits(), tiles.places()};
  }
  const bool is_coded =
      acc == DType::kFloat32 &&
      (dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kInt8);
  check.tensor("values", values.view, is_coded ? dtype : acc,
               {tiles.n_entries() * tiles.tiles().unit_rows});
  if (dtype == DType::kInt8) {
    if (!scales.given)
      throw py::value_error(std::string(check.operation) + ": int8 values need scales");
    check.tensor("scales", scales.view, DType::kFloat32, {tiles.tiles().n_rows});
  }
  const ValueKind kind = dtype == DType::kBFloat16  ? ValueKind::kBFloat16
                         : dtype == DType::kFloat16 ? ValueKind::kFloat16
                         : dtype == DType::kInt8    ? ValueKind::kInt8
                                                    : ValueKind::kPlain;
  return {values.view.data, scales.view.as<float>(), kind, nullptr, nullptr};
}

int64_t threads_of(const Check& check, int64_t n_threads) {
  check.at_least("n_threads", n_threads, 1);
  return std::min<int64_t>(n_threads, 1024);
}

int64_t spmm_workspace_checked(const TilesObject& tiles, bool is_double, bool plain, int64_t m,
                               int64_t n_threads) {
  const Check check{"spmm"};
  check.at_least("m", m, 0);
  const int threads = static_cast<int>(threads_of(check, n_threads));
  return is_double ? spmm_workspace<double>(tiles.tiles(), plain, m, threads)
                   : spmm_workspace<float>(tiles.tiles(), plain, m, threads);
}

void spmm_checked(const TilesObject& tiles, const Arg& values, const OptionalArg& scales,
                  const Arg& x, const OptionalArg& bias, const Arg& workspace, const Arg& y,
                  int64_t n_threads) {
  const Check check{"spmm"};
  const DType dtype = check.floating("x", x.view), acc = acc_of(dtype);
  const Tiles& w = tiles.tiles();
  check.tensor("x", x.view, dtype, {-1, w.n_columns});
  const int64_t m = x.view.shape[0];
  check.tensor("y", y.view, dtype, {m, w.n_rows});
  if (bias.given) check.tensor("bias", bias.view, acc, {w.n_rows});
  const Values kept = values_of(check, tiles, values, scales, acc);
  const int threads = static_cast<int>(threads_of(check, n_threads));
  check.tensor("workspace", workspace.view, acc,
               {spmm_workspace_checked(tiles, acc == DType::kFloat64,
                                       kept.kind == ValueKind::kPlain, m, threads)});
  check.apart(
      {{"y", y.view}, {"workspace", workspace.view}},
      {{"x", x.view}, {"values", values.view}, {"bias", bias.view}, {"scales", scales.view}});
  tiles.check_disjoint(check, "y", y.view);
  tiles.check_disjoint(check, "workspace", workspace.view);
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    using T = Acc<S>;
    spmm<T, S>(
        {w, kept, x.view.as<S>(), bias.view.as<T>(), y.view.as<S>(), workspace.view.as<T>(), m},
        threads);
  });
}

int64_t sddmm_workspace_checked(const TilesObject& tiles, bool is_double, int64_t m) {
  const Check check{"sddmm"};
  check.at_least("m", m, 0);
  return is_double ? sddmm_workspace<double>(tiles.tiles(), m)
                   : sddmm_workspace<float>(tiles.tiles(), m);
}

void sddmm_checked(const TilesObject& tiles, const Arg& dy, const Arg& x, const Arg& workspace,
                   const Arg& values, int64_t n_threads) {
  const Check check{"sddmm"};
  const DType dtype = check.floating("x", x.view), acc = acc_of(dtype);
  const Tiles& w = tiles.tiles();
  if (w.unit_rows != 1) throw py::value_error("sddmm: tiles must have unit_rows 1");
  check.tensor("x", x.view, dtype, {-1, w.n_columns});
  const int64_t m = x.view.shape[0];
  check.tensor("dy", dy.view, dtype, {m, w.n_rows});
  check.tensor("values", values.view, acc, {tiles.n_entries()});
  check.tensor("workspace", workspace.view, acc,
               {sddmm_workspace_checked(tiles, acc == DType::kFloat64, m)});
  check.apart({{"values", values.view}, {"workspace", workspace.view}},
              {{"x", x.view}, {"dy", dy.view}});
  tiles.check_disjoint(check, "values", values.view);
  tiles.check_disjoint(check, "workspace", workspace.view);
  const int threads = static_cast<int>(threads_of(check, n_threads));
  const py::gil_scoped_release release;
  for_dtype(dtype, [&](auto zero) {
    using S = decltype(zero);
    using T = Acc<S>;
    sddmm<T, S>(
        {w, x.view.as<S>(), dy.view.as<S>(), values.view.as<T>(), workspace.view.as<T>(), m},
        threads);
  });
}

}  // namespace

void bind_spmm(py::module_& m) {
  py::class_<TilesObject>(m, "Tiles")
      .def(py::init<py::object, py::object, int64_t, int64_t, int64_t, int64_t, py::object>(),
           py::arg("starts"), py::arg("columns"), py::arg("n_rows"), py::arg("n_columns"),
           py::arg("block_columns"), py::arg("unit_rows") = 1, py::arg("bits") = py::none())
      .def_property_readonly("bits", &TilesObject::bits_tensor)
      .def_property_readonly("starts", &TilesObject::starts)
      .def_property_readonly("columns", &TilesObject::columns)
      .def_property_readonly("n_entries", &TilesObject::n_entries)
      .def_property_readonly("n_rows", [](const TilesObject& t) { return t.tiles().n_rows; })
      .def_property_readonly("n_columns", [](const TilesObject& t) { return t.tiles().n_columns; })
      .def_property_readonly("block_columns",
                             [](const TilesObject& t) { return t.tiles().block_columns; })
      .def_property_readonly("unit_rows", [](const TilesObject& t) { return t.tiles().unit_rows; });
  m.def("spmm_workspace", &spmm_workspace_checked, py::arg("tiles"), py::arg("is_double"),
        py::arg("plain"), py::arg("m"), py::arg("n_threads"));
  m.def("spmm", &spmm_checked, py::arg("tiles"), py::arg("values"), py::arg("scales"), py::arg("x"),
        py::arg("bias"), py::arg("workspace"), py::arg("y"), py::arg("n_threads"));
  m.def("sddmm_workspace", &sddmm_workspace_checked, py::arg("tiles"), py::arg("is_double"),
        py::arg("m"));
  m.def("sddmm", &sddmm_checked, py::arg("tiles"), py::arg("dy"), py::arg("x"),
        py::arg("workspace"), py::arg("values"), py::arg("n_threads"));
}

}  // namespace ds
