#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "cpu/spmm/tile_spmm.h"

namespace ds {
namespace {

namespace py = pybind11;

// Block numbers are int32, and extents rounded up to blocks must not overflow.
void extents_fit(const Check& check, int64_t n_out, int64_t n_in) {
  check.at_least("n_out", n_out, 1);
  check.at_least("n_in", n_in, 1);
  if (n_out > INT32_MAX || n_in > INT32_MAX)
    throw py::value_error(std::string(check.operation) +
                          ": weight must have fewer than 2^31 rows " + "and columns, got " +
                          std::to_string(n_out) + " and " + std::to_string(n_in));
}

// ------------------------------------------------------------------ the weight
// Checked once, when made (a pass over masks and lists costs as much as a product with few rows),
// and kept alive with the tensors it reads, which must not be written to afterwards.
class KeptTileBlocks {
 public:
  KeptTileBlocks(py::object start, py::object columns, py::object place, py::object masks,
                 py::object values, int64_t n_out, int64_t n_in)
      : tensors_{std::move(start), std::move(columns), std::move(place), std::move(masks),
                 std::move(values)} {
    const Check check{"TileBlocks"};
    TensorView v[5];
    for (int i = 0; i < 5; ++i) view_of(tensors_[i], &v[i]);
    extents_fit(check, n_out, n_in);
    check.tensor("start", v[0], DType::kInt64, {n_tile_blocks(n_out) + 1});
    check.tensor("columns", v[1], DType::kInt32, {-1});
    const int64_t n_blocks = v[1].shape[0];
    check.starts("start", v[0], n_blocks);
    check.rows("columns", v[1], 0, n_tile_blocks(n_in));
    check.tensor("place", v[2], DType::kInt64, {n_blocks});
    check.tensor("masks", v[3], DType::kInt32, {n_blocks, kMaskWords});
    check.tensor("values", v[4], DType::kBFloat16, {-1});
    blocks_ = {n_out,
               n_in,
               v[0].as<int64_t>(),
               v[1].as<int32_t>(),
               v[2].as<int64_t>(),
               v[3].as<uint32_t>(),
               v[4].as<bf16>()};
    const py::gil_scoped_release release;
    check_columns();
    check_places(n_blocks, v[4].shape[0]);
  }

  const TileBlocks& blocks() const { return blocks_; }
  py::object tensor(int i) const { return tensors_[i]; }
  void check_disjoint(const Check& check, const char* name, const TensorView& out) const {
    for (const py::object& tensor : tensors_) {
      TensorView view;
      view_of(tensor, &view);
      check.disjoint(name, out, "the weight's blocks", view);
    }
  }

 private:
  void check_columns() const {
    for (int64_t row = 0; row < n_tile_blocks(blocks_.n_out); ++row)
      for (int64_t b = blocks_.start[row] + 1; b < blocks_.start[row + 1]; ++b)
        if (blocks_.columns[b] <= blocks_.columns[b - 1])
          throw py::value_error(
              "TileBlocks: columns must strictly ascend within a block row, got " +
              std::to_string(blocks_.columns[b]) + " behind " +
              std::to_string(blocks_.columns[b - 1]));
  }
  void check_places(int64_t n_blocks, int64_t n_values) const {
    for (int64_t b = 0; b < n_blocks; ++b) {
      const int64_t place = blocks_.place[b];
      int64_t at = place < 0 ? ~place : place, size = kBlockValues;
      if (place >= 0) {
        size = kValuesSlack;
        for (int64_t i = 0; i < kMaskWords; ++i)
          size += __builtin_popcount(blocks_.masks[b * kMaskWords + i]);
      }
      if (at > n_values - size || (place < 0 && at % kTileDepth != 0))
        throw py::value_error("TileBlocks: place must be within " + std::to_string(n_values) +
                              " values, got " + std::to_string(place) + " for block " +
                              std::to_string(b));
    }
  }

  py::object tensors_[5];
  TileBlocks blocks_{};
};

// ------------------------------------------------------------------ packing
CsrWeight csr_of(const Check& check, const Arg& row_start, const Arg& columns, int64_t n_in) {
  check.tensor("row_start", row_start.view, DType::kInt64, {-1});
  check.tensor("columns", columns.view, DType::kInt32, {-1});
  const int64_t n_out = row_start.view.shape[0] - 1;
  extents_fit(check, n_out, n_in);
  check.starts("row_start", row_start.view, columns.view.shape[0]);
  check.rows("columns", columns.view, 0, n_in);
  return {row_start.view.as<int64_t>(), columns.view.as<int32_t>(), n_out, n_in};
}

// counts: (block rows, block columns), start: (block rows + 1). Returns the numbers of blocks and
// of values.
py::tuple plan_checked(const Arg& row_start, const Arg& columns, int64_t n_in, const Arg& counts,
                       const Arg& start, int n_threads) {
  const Check check{"plan_tile_blocks"};
  const CsrWeight w = csr_of(check, row_start, columns, n_in);
  const int64_t n_rows = n_tile_blocks(w.n_out);
  check.tensor("counts", counts.view, DType::kInt32, {n_rows, n_tile_blocks(n_in)});
  check.tensor("start", start.view, DType::kInt64, {n_rows + 1});
  check.apart({{"counts", counts.view}, {"start", start.view}},
              {{"row_start", row_start.view}, {"columns", columns.view}});
  TilePlan plan;
  {
    const py::gil_scoped_release release;
    plan = plan_tile_blocks(w, counts.view.as<int32_t>(), start.view.as<int64_t>(), n_threads);
  }
  return py::make_tuple(plan.n_blocks, plan.n_values);
}

void fill_checked(const Arg& row_start, const Arg& columns, const Arg& values, int64_t n_in,
                  const Arg& counts, const Arg& start, const Arg& block_columns, const Arg& place,
                  const Arg& masks, const Arg& block_values, int n_threads) {
  const Check check{"fill_tile_blocks"};
  const CsrWeight w = csr_of(check, row_start, columns, n_in);
  const bool is_float = values.view.dtype == DType::kFloat32;
  check.tensor("values", values.view, is_float ? DType::kFloat32 : DType::kBFloat16,
               {columns.view.shape[0]});
  const int64_t n_rows = n_tile_blocks(w.n_out), n_blocks = block_columns.view.n_elements();
  check.tensor("counts", counts.view, DType::kInt32, {n_rows, n_tile_blocks(n_in)});
  check.rows("counts", counts.view, 0, INT64_C(1) << 31);
  check.tensor("start", start.view, DType::kInt64, {n_rows + 1});
  check.tensor("block_columns", block_columns.view, DType::kInt32, {n_blocks});
  check.starts("start", start.view, n_blocks);
  check.tensor("place", place.view, DType::kInt64, {n_blocks});
  check.tensor("masks", masks.view, DType::kInt32, {n_blocks, kMaskWords});
  check.tensor("block_values", block_values.view, DType::kBFloat16, {-1});
  check.apart({{"block_columns", block_columns.view},
               {"place", place.view},
               {"masks", masks.view},
               {"block_values", block_values.view}},
              {{"row_start", row_start.view},
               {"columns", columns.view},
               {"values", values.view},
               {"counts", counts.view},
               {"start", start.view}});
  const FilledBlocks out{block_columns.view.as<int32_t>(), place.view.as<int64_t>(),
                         masks.view.as<uint32_t>(), block_values.view.as<bf16>(),
                         block_values.view.shape[0]};
  bool good;
  {
    const py::gil_scoped_release release;
    const auto fill = [&](auto zero) {
      using T = decltype(zero);
      return fill_tile_blocks(w, values.view.as<T>(), counts.view.as<int32_t>(),
                              start.view.as<int64_t>(), out, n_threads);
    };
    good = is_float ? fill(float{}) : fill(bf16{});
  }
  if (!good)
    throw py::value_error(
        "fill_tile_blocks: columns must strictly ascend within a row and be those of the plan");
}

// ------------------------------------------------------------------ products
int64_t workspace_of(int64_t n_rows, int64_t n_in) {
  const Check check{"tile_spmm"};
  check.at_least("n_rows", n_rows, 0);
  check.at_least("n_in", n_in, 1);
  if (n_rows > INT64_MAX / 64 || n_in > INT32_MAX || n_rows > INT64_MAX / 4 / (n_in + 31) - 16)
    throw py::value_error("tile_spmm: x must fit in memory, got " + std::to_string(n_rows) +
                          " rows of " + std::to_string(n_in));
  return tile_rows_workspace(n_rows, n_in);
}

void check_result(const Check& check, const KeptTileBlocks& weight, const OptionalArg& bias,
                  const Arg& y) {
  check.tensor("y", y.view, DType::kBFloat16, {-1, weight.blocks().n_out});
  if (bias.given) {
    check.tensor("bias", bias.view, DType::kFloat32, {weight.blocks().n_out});
    check.disjoint("y", y.view, "bias", bias.view);
  }
  weight.check_disjoint(check, "y", y.view);
}

void tile_spmm_checked(const Arg& x, const KeptTileBlocks& weight, const OptionalArg& bias,
                       const Arg& workspace, const Arg& y, int n_threads) {
  const Check check{"tile_spmm"};
  const int64_t n_in = weight.blocks().n_in;
  check.tensor("x", x.view, DType::kBFloat16, {-1, n_in});
  check_result(check, weight, bias, y);
  const int64_t n_rows = x.view.shape[0];
  check.tensor("y", y.view, DType::kBFloat16, {n_rows, -1});
  check.tensor("workspace", workspace.view, DType::kBFloat16, {workspace_of(n_rows, n_in)});
  check.apart({{"y", y.view}, {"workspace", workspace.view}}, {{"x", x.view}, {"bias", bias.view}});
  weight.check_disjoint(check, "workspace", workspace.view);
  const py::gil_scoped_release release;
  const TileRows rows =
      plain_tile_rows(x.view.as<bf16>(), n_rows, n_in, workspace.view.as<bf16>(), n_threads);
  tile_spmm({weight.blocks(), rows, n_rows, bias.view.as<float>(), y.view.as<bf16>()}, n_threads);
}

// Tiles must lie within the image, and every row of y be written once.
void check_rows(const Check& check, const Arg& x, const Arg& half_start, const Arg& block_start,
                int64_t row_stride, const Arg& out_rows, int64_t n_rows) {
  const std::string where = check.operation;
  const int64_t n_values = x.view.shape[0], n_halves = half_start.view.shape[0];
  check.at_least("row_stride", row_stride, 0);
  check.rows("half_start", half_start.view, 0, n_values);
  check.rows("block_start", block_start.view, 0, n_values);
  int64_t last = 0, offset = 0, row = 0;
  for (int64_t h = 0; h < n_halves; ++h) last = std::max(last, half_start.view.as<int64_t>()[h]);
  for (int64_t b = 0; b < block_start.view.shape[0]; ++b)
    offset = std::max(offset, block_start.view.as<int64_t>()[b]);
  if (n_halves > 0 && (row_stride > n_values ||
                       last + (kHalfRows - 1) * row_stride + offset + kTileDepth > n_values))
    throw py::value_error(where + ": x must hold every row that is named, got " +
                          std::to_string(n_values) + " values; pad it at its end");
  bool good = true;
  for (int64_t i = 0; i < n_halves * kHalfRows; ++i) {
    const int32_t to = out_rows.view.as<int32_t>()[i];
    if (to >= 0) good &= to == row++;
  }
  if (!good || row != n_rows)
    throw py::value_error(where + ": out_rows must name the rows 0 to " + std::to_string(n_rows) +
                          " of y, each once, in order");
}

void tile_conv_checked(const Arg& x, const KeptTileBlocks& weight, const Arg& half_start,
                       const Arg& block_start, int64_t row_stride, const Arg& out_rows,
                       const OptionalArg& bias, const Arg& y, int n_threads) {
  const Check check{"tile_conv"};
  check.tensor("x", x.view, DType::kBFloat16, {-1});
  check.tensor("half_start", half_start.view, DType::kInt64, {-1});
  const int64_t n_halves = half_start.view.shape[0];
  check.tensor("block_start", block_start.view, DType::kInt64,
               {n_tile_blocks(weight.blocks().n_in)});
  check.tensor("out_rows", out_rows.view, DType::kInt32, {n_halves, kHalfRows});
  check_result(check, weight, bias, y);
  check.apart({{"y", y.view}}, {{"x", x.view},
                                {"half_start", half_start.view},
                                {"block_start", block_start.view},
                                {"out_rows", out_rows.view}});
  const py::gil_scoped_release release;
  check_rows(check, x, half_start, block_start, row_stride, out_rows, y.view.shape[0]);
  const TileRows rows{x.view.as<bf16>(),
                      row_stride,
                      half_start.view.as<int64_t>(),
                      block_start.view.as<int64_t>(),
                      out_rows.view.as<int32_t>(),
                      n_halves,
                      nullptr};
  tile_spmm({weight.blocks(), rows, y.view.shape[0], bias.view.as<float>(), y.view.as<bf16>()},
            n_threads);
}

}  // namespace

void bind_spmm_tiles(py::module_& m) {
  py::class_<KeptTileBlocks>(m, "TileBlocks",
                             "A pruned bfloat16 weight in 32 x 32 blocks, checked once: start, "
                             "columns, place, masks, values, n_out, n_in.")
      .def(py::init<py::object, py::object, py::object, py::object, py::object, int64_t, int64_t>())
      .def_property_readonly("n_out", [](const KeptTileBlocks& b) { return b.blocks().n_out; })
      .def_property_readonly("n_in", [](const KeptTileBlocks& b) { return b.blocks().n_in; })
      .def_property_readonly("start", [](const KeptTileBlocks& b) { return b.tensor(0); })
      .def_property_readonly("columns", [](const KeptTileBlocks& b) { return b.tensor(1); })
      .def_property_readonly("place", [](const KeptTileBlocks& b) { return b.tensor(2); })
      .def_property_readonly("masks", [](const KeptTileBlocks& b) { return b.tensor(3); })
      .def_property_readonly("values", [](const KeptTileBlocks& b) { return b.tensor(4); });
  m.def("plan_tile_blocks", &plan_checked);
  m.def("fill_tile_blocks", &fill_checked);
  m.def("tile_spmm_workspace", &workspace_of);
  m.def("tile_spmm", &tile_spmm_checked);
  m.def("tile_conv", &tile_conv_checked);
}

}  // namespace ds
