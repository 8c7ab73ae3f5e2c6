#include <pybind11/stl.h>

#include <algorithm>

#include "bind/gpu/gpu.h"
#include "cuda/rulebook/neighbours.h"
#include "cuda/rulebook/output_sites.h"

namespace ds {
namespace {

namespace py = pybind11;
using Ints = std::vector<int64_t>;

constexpr int64_t kMost = INT32_MAX;

void copy_axes(const Check& check, const char* name, const Ints& values, int n_axes, int64_t least,
               int64_t most, int64_t* out) {
  const std::string where = std::string(check.operation) + ": " + name + " must ";
  if (static_cast<int>(values.size()) != n_axes)
    throw py::value_error(where + "have " + std::to_string(n_axes) + " values, got " +
                          std::to_string(values.size()));
  for (int a = 0; a < n_axes; ++a) {
    check.at_least(name, values[a], least);
    if (values[a] > most)
      throw py::value_error(where + "be <= " + std::to_string(most) + ", got " +
                            std::to_string(values[a]));
    out[a] = values[a];
  }
}

int axes_of(const Check& check, const char* name, const TensorView& coords) {
  check.tensor(name, coords, DType::kInt32, {-1, -1});
  const std::string where = std::string(check.operation) + ": " + name + " must have ";
  if (coords.shape[1] < 2 || coords.shape[1] > 1 + gpu::kMostAxes)
    throw py::value_error(where + "2 to 5 columns, got " + std::to_string(coords.shape[1]));
  if (coords.shape[0] >= kMost) throw py::value_error(where + "fewer than 2^31 - 1 rows");
  return static_cast<int>(coords.shape[1]) - 1;
}

gpu::TapGeometry taps_of(const Check& check, int n_axes, const Ints& kernel, const Ints& stride,
                         const Ints& padding, const Ints& dilation) {
  gpu::TapGeometry taps{};
  copy_axes(check, "kernel", kernel, n_axes, 1, kMost, taps.kernel);
  copy_axes(check, "stride", stride, n_axes, 1, kMost, taps.stride);
  copy_axes(check, "padding", padding, n_axes, -kMost, kMost, taps.padding);
  copy_axes(check, "dilation", dilation, n_axes, 1, kMost, taps.dilation);
  return taps;
}

void neighbour_table(const Arg& query, const Arg& target, const Ints& target_shape,
                     const Ints& kernel, const Ints& stride, const Ints& padding,
                     const Ints& dilation, bool symmetric, const Arg& bitmap, const Arg& keys,
                     const Arg& table) {
  const Check check = gpu_check("build_pairs", query);
  const int n_axes = axes_of(check, "query_coords", query.view);
  axes_of(check, "target_coords", target.view);
  check.tensor("target_coords", target.view, DType::kInt32, {-1, 1 + n_axes});
  gpu::NeighbourProblem p{};
  p.query = query.view.as<int32_t>();
  p.target = target.view.as<int32_t>();
  p.n_query = query.view.shape[0];
  p.n_target = target.view.shape[0];
  p.shape.n_axes = n_axes;
  copy_axes(check, "target_shape", target_shape, n_axes, 0, INT64_MAX, p.shape.extent);
  p.taps = taps_of(check, n_axes, kernel, stride, padding, dilation);
  bool centred = p.query == p.target && p.n_query == p.n_target;
  int64_t n_offsets = 1;
  for (int a = 0; a < n_axes; ++a) {
    centred &= kernel[a] % 2 == 1 && stride[a] == 1 && padding[a] == kernel[a] / 2 * dilation[a];
    n_offsets = std::min(kMost + 1, n_offsets * kernel[a]);
  }
  if (n_offsets > kMost) throw py::value_error("build_pairs: kernel must have < 2^31 offsets");
  if (symmetric && !centred)
    throw py::value_error(
        "build_pairs: symmetric needs one site list, odd kernels, stride 1 and centred padding");
  check.tensor("bitmap", bitmap.view, DType::kInt64, {-1});
  check.tensor("keys", keys.view, DType::kInt64, {p.n_target});
  check.tensor("table", table.view, DType::kInt32, {n_offsets, p.n_query});
  check.apart({{"table", table.view}, {"bitmap", bitmap.view}, {"keys", keys.view}},
              {{"query_coords", query.view}, {"target_coords", target.view}});
  p.n_rows = n_offsets / kernel[n_axes - 1];
  p.bitmap = bitmap.view.as<gpu::Cells>();
  p.n_bitmap = bitmap.view.shape[0];
  int64_t cells = 1;  // of a sample, or one more than the bitmap has
  for (int a = 0; a < n_axes; ++a)
    cells = p.shape.extent[a] > 32 * p.n_bitmap
                ? 32 * p.n_bitmap + 1
                : std::min(32 * p.n_bitmap + 1, cells * p.shape.extent[a]);
  if (cells > 32 * p.n_bitmap) p.n_bitmap = 0;
  p.keys = keys.view.as<int64_t>();
  p.table = table.view.as<int32_t>();
  on_device(check.operation, query.view,
            [&](const gpu::Stream& stream) { return gpu::neighbour_table(stream, p); });
}

void reverse_table(const Arg& table, const Arg& reversed) {
  const Check check = gpu_check("reverse_table", table);
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  check.tensor("reversed", reversed.view, DType::kInt32, {table.view.shape[0], -1});
  check.apart({{"reversed", reversed.view}}, {{"table", table.view}});
  on_device(check.operation, table.view, [&](const gpu::Stream& stream) {
    return gpu::reverse_table(stream, table.view.as<int32_t>(), table.view.shape[0],
                              table.view.shape[1], reversed.view.as<int32_t>(),
                              reversed.view.shape[1]);
  });
}

void count_pairs(const Arg& table, const Arg& workspace, const Arg& counts, const Arg& tile_start) {
  const Check check = gpu_check("pair_lists", table);
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  const int64_t n_offsets = table.view.shape[0], n_dst = table.view.shape[1];
  const int64_t n_starts = n_offsets * gpu::tiles_of(n_dst) + 1;
  check.tensor("workspace", workspace.view, DType::kInt64, {-1});
  check.tensor("counts", counts.view, DType::kInt32, {n_starts});
  check.tensor("tile_start", tile_start.view, DType::kInt64, {n_starts});
  check.apart(
      {{"workspace", workspace.view}, {"counts", counts.view}, {"tile_start", tile_start.view}},
      {{"table", table.view}});
  on_device(check.operation, table.view, [&](const gpu::Stream& stream) {
    const gpu::Workspace room{workspace.view.data, 8 * workspace.view.shape[0]};
    return gpu::count_pairs(stream, room, table.view.as<int32_t>(), n_offsets, n_dst,
                            counts.view.as<int32_t>(), tile_start.view.as<int64_t>());
  });
}

void fill_pairs(const Arg& table, const Arg& tile_start, const Arg& src_rows, const Arg& dst_rows) {
  const Check check = gpu_check("pair_lists", table);
  check.tensor("table", table.view, DType::kInt32, {-1, -1});
  const int64_t n_offsets = table.view.shape[0], n_dst = table.view.shape[1];
  check.tensor("tile_start", tile_start.view, DType::kInt64,
               {n_offsets * gpu::tiles_of(n_dst) + 1});
  check.tensor("src_rows", src_rows.view, DType::kInt32, {-1});
  check.tensor("dst_rows", dst_rows.view, DType::kInt32, {src_rows.view.shape[0]});
  check.apart({{"src_rows", src_rows.view}, {"dst_rows", dst_rows.view}},
              {{"table", table.view}, {"tile_start", tile_start.view}});
  on_device(check.operation, table.view, [&](const gpu::Stream& stream) {
    return gpu::fill_pairs(stream, table.view.as<int32_t>(), n_offsets, n_dst,
                           tile_start.view.as<int64_t>(), src_rows.view.as<int32_t>(),
                           dst_rows.view.as<int32_t>(), src_rows.view.shape[0]);
  });
}

void table_of_lists(const Arg& src_rows, const Arg& dst_rows, const Arg& offset_start,
                    int64_t n_src, const Arg& table) {
  const Check check = gpu_check("Pairs", src_rows);
  check.tensor("src_rows", src_rows.view, DType::kInt32, {-1});
  check.tensor("dst_rows", dst_rows.view, DType::kInt32, {src_rows.view.shape[0]});
  check.tensor("offset_start", offset_start.view, DType::kInt64, {-1});
  check.at_least("the length of offset_start", offset_start.view.shape[0], 1);
  check.at_least("n_src", n_src, 0);
  check.tensor("table", table.view, DType::kInt32, {offset_start.view.shape[0] - 1, -1});
  check.apart({{"table", table.view}}, {{"src_rows", src_rows.view},
                                        {"dst_rows", dst_rows.view},
                                        {"offset_start", offset_start.view}});
  const gpu::PairLists lists{src_rows.view.as<int32_t>(), dst_rows.view.as<int32_t>(),
                             offset_start.view.as<int64_t>(), table.view.shape[0],
                             src_rows.view.shape[0]};
  on_device(check.operation, src_rows.view, [&](const gpu::Stream& stream) {
    return gpu::table_of_lists(stream, lists, table.view.as<int32_t>(), n_src, table.view.shape[1]);
  });
}

// Axes [first_axis, end_axis) go from the extents of `now` to those of `next`.
void dilate_keys(const Arg& keys, int64_t n_samples, const Ints& now, const Ints& next,
                 const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                 bool transposed, int64_t first_axis, int64_t end_axis, const Arg& workspace,
                 const Arg& expanded, const Arg& sorted, const Arg& n_out) {
  const Check check = gpu_check("output_coords", keys);
  check.tensor("keys", keys.view, DType::kInt64, {-1});
  const int64_t n_axes = static_cast<int64_t>(now.size());
  if (n_axes < 1 || n_axes > gpu::kMostAxes)
    throw py::value_error("output_coords: in_shape must have 1 to 4 axes, got " +
                          std::to_string(n_axes));
  check.at_least("n_samples", n_samples, 0);
  gpu::DilateProblem p{};
  p.n_axes = static_cast<int>(n_axes);
  int64_t from[gpu::kMostAxes], to[gpu::kMostAxes];
  copy_axes(check, "in_shape", now, p.n_axes, 1, INT64_MAX, from);
  copy_axes(check, "out_shape", next, p.n_axes, 1, INT64_MAX, to);
  const gpu::TapGeometry taps = taps_of(check, p.n_axes, kernel, stride, padding, dilation);
  p.transposed = transposed;
  p.n_samples = n_samples;
  p.n_keys = p.n_expanded = keys.view.shape[0];
  for (int a = 0; a < p.n_axes; ++a) {
    const bool changes = a >= first_axis && a < end_axis;
    p.axis[a] = gpu::axis_fan(from[a], changes ? to[a] : from[a], taps.kernel[a], taps.stride[a],
                              taps.padding[a], taps.dilation[a], transposed);
    if (!changes)
      p.axis[a].n_outputs = 0;
    else if (p.n_expanded > (int64_t{1} << 60) / p.axis[a].n_outputs)
      throw py::value_error("output_coords: kernel is too large for that many sites");
    else
      p.n_expanded *= p.axis[a].n_outputs;
  }
  check.tensor("workspace", workspace.view, DType::kInt64, {-1});
  check.tensor("expanded", expanded.view, DType::kInt64, {p.n_expanded});
  check.tensor("sorted", sorted.view, DType::kInt64, {p.n_expanded});
  check.tensor("n_out", n_out.view, DType::kInt64, {1});
  check.apart({{"expanded", expanded.view},
               {"sorted", sorted.view},
               {"workspace", workspace.view},
               {"n_out", n_out.view}},
              {{"keys", keys.view}});
  p.keys = keys.view.as<int64_t>();
  p.expanded = expanded.view.as<int64_t>();
  p.sorted = sorted.view.as<int64_t>();
  p.n_out = n_out.view.as<int64_t>();
  p.workspace = {workspace.view.data, 8 * workspace.view.shape[0]};
  on_device(check.operation, keys.view,
            [&](const gpu::Stream& stream) { return gpu::dilate_keys(stream, p); });
}

}  // namespace

void bind_gpu_rulebook(py::module_& m) {
  m.attr("kTileRows") = gpu::kTileRows;
  m.def("neighbour_table", &neighbour_table, py::arg("query_coords"), py::arg("target_coords"),
        py::arg("target_shape"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("symmetric"), py::arg("bitmap"), py::arg("keys"),
        py::arg("table"));
  m.def("reverse_table", &reverse_table, py::arg("table"), py::arg("reversed"));
  m.def("count_pairs", &count_pairs, py::arg("table"), py::arg("workspace"), py::arg("counts"),
        py::arg("tile_start"));
  m.def("fill_pairs", &fill_pairs, py::arg("table"), py::arg("tile_start"), py::arg("src_rows"),
        py::arg("dst_rows"));
  m.def("table_of_lists", &table_of_lists, py::arg("src_rows"), py::arg("dst_rows"),
        py::arg("offset_start"), py::arg("n_src"), py::arg("table"));
  m.def("dilate_keys", &dilate_keys, py::arg("keys"), py::arg("n_samples"), py::arg("now"),
        py::arg("next"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("transposed"), py::arg("first_axis"), py::arg("end_axis"),
        py::arg("workspace"), py::arg("expanded"), py::arg("sorted"), py::arg("n_out"));
}

}  // namespace ds
