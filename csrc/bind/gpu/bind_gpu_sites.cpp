#include <pybind11/stl.h>

#include "bind/gpu/gpu.h"
#include "cuda/sites/keys.h"

namespace ds {
namespace {

namespace py = pybind11;

gpu::GridShape grid_shape(const Check& check, const std::vector<int64_t>& extents) {
  if (extents.empty() || extents.size() > gpu::kMostAxes)
    throw py::value_error(std::string(check.operation) + ": shape must have 1 to 4 axes, got " +
                          std::to_string(extents.size()));
  gpu::GridShape shape{static_cast<int>(extents.size()), {}};
  for (size_t a = 0; a < extents.size(); ++a) {
    check.at_least("shape", extents[a], 1);
    shape.extent[a] = extents[a];
  }
  return shape;
}

void coords_to_keys(const Arg& coords, const std::vector<int64_t>& extents, const Arg& keys) {
  const Check check = gpu_check("linear_keys", coords);
  const gpu::GridShape shape = grid_shape(check, extents);
  check.tensor("coords", coords.view, DType::kInt32, {-1, 1 + shape.n_axes});
  check.tensor("keys", keys.view, DType::kInt64, {coords.view.shape[0]});
  check.apart({{"keys", keys.view}}, {{"coords", coords.view}});
  on_device(check.operation, coords.view, [&](const gpu::Stream& stream) {
    return gpu::coords_to_keys(stream, coords.view.as<int32_t>(), coords.view.shape[0], shape,
                               keys.view.as<int64_t>());
  });
}

void keys_to_coords(const Arg& keys, const std::vector<int64_t>& extents, const Arg& coords) {
  const Check check = gpu_check("coords_of_keys", keys);
  const gpu::GridShape shape = grid_shape(check, extents);
  check.tensor("keys", keys.view, DType::kInt64, {-1});
  check.tensor("coords", coords.view, DType::kInt32, {keys.view.shape[0], 1 + shape.n_axes});
  check.apart({{"coords", coords.view}}, {{"keys", keys.view}});
  on_device(check.operation, keys.view, [&](const gpu::Stream& stream) {
    return gpu::keys_to_coords(stream, keys.view.as<int64_t>(), keys.view.shape[0], shape,
                               coords.view.as<int32_t>());
  });
}

}  // namespace

void bind_gpu_sites(py::module_& m) {
  m.def("coords_to_keys", &coords_to_keys, py::arg("coords"), py::arg("shape"), py::arg("keys"));
  m.def("keys_to_coords", &keys_to_coords, py::arg("keys"), py::arg("shape"), py::arg("coords"));
}

}  // namespace ds
