#include <cmath>

#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "cpu/codes/nearest.h"

namespace ds {
namespace {

namespace py = pybind11;

constexpr int64_t kMostCenters = int64_t{1} << 16, kMostFeatures = int64_t{1} << 20;

int64_t nearest_workspace_of(int64_t n, int64_t k, int64_t d_sub, int n_threads) {
  const Check check{"nearest_centers"};
  check.at_least("n", n, 0);
  check.at_least("k", k, 1);
  check.at_least("d_sub", d_sub, 1);
  check.at_least("n_threads", n_threads, 1);
  if (k > kMostCenters || d_sub > kMostFeatures)
    throw py::value_error(
        "nearest_centers: there must be at most 2^16 centers and 2^20 features, got " +
        std::to_string(k) + " and " + std::to_string(d_sub));
  return nearest_workspace(n, k, d_sub, n_threads);
}

// The first value of a row (its column j, or columns[j]) beyond the limit, as an exception.
void throw_value(const char* name, const float* row, int64_t i, const int64_t* columns,
                 int64_t d_sub) {
  const float limit = largest_value(d_sub);
  for (int64_t j = 0; j < d_sub; ++j) {
    const int64_t column = columns ? columns[j] : j;
    const float value = row[column];
    if (std::abs(value) <= limit) continue;
    throw py::value_error(std::string("nearest_centers: ") + name + " must be finite and at most " +
                          std::to_string(limit) + " in size, got " + std::to_string(value) +
                          " at (" + std::to_string(i) + ", " + std::to_string(column) +
                          "); remove or scale such values");
  }
}

void check_columns(const TensorView& columns, int64_t d_sub, int64_t d) {
  const Check check{"nearest_centers"};
  check.tensor("columns", columns, DType::kInt64, {d_sub});
  check.rows("columns", columns, 0, d);
  const int64_t* c = columns.as<int64_t>();
  for (int64_t j = 1; j < d_sub; ++j)
    if (c[j - 1] >= c[j])
      throw py::value_error("nearest_centers: columns must ascend, got " + std::to_string(c[j]) +
                            " after " + std::to_string(c[j - 1]));
}

// out: int8 or int16, the bits of uint8 or uint16.
void nearest_centers_checked(const Arg& points, const Arg& centers, const OptionalArg& columns,
                             const Arg& workspace, const Arg& out, int n_threads) {
  const Check check{"nearest_centers"};
  check.tensor("points", points.view, DType::kFloat32, {-1, -1});
  check.tensor("centers", centers.view, DType::kFloat32, {-1, -1});
  const int64_t n = points.view.shape[0], d = points.view.shape[1];
  const int64_t k = centers.view.shape[0], d_sub = centers.view.shape[1];
  const int64_t size = nearest_workspace_of(n, k, d_sub, n_threads);
  if (columns.given)
    check_columns(columns.view, d_sub, d);
  else
    check.tensor("points", points.view, DType::kFloat32, {n, d_sub});
  const bool is_wide = out.view.dtype == DType::kInt16;
  check.tensor("out", out.view, is_wide ? DType::kInt16 : DType::kInt8, {n});
  if (!is_wide && k > 256)
    throw py::value_error("nearest_centers: out must be uint16 for more than 256 centers, got " +
                          std::to_string(k));
  check.tensor("workspace", workspace.view, DType::kFloat32, {size});
  check.apart({{"out", out.view}, {"workspace", workspace.view}},
              {{"points", points.view}, {"centers", centers.view}, {"columns", columns.view}});
  const NearestArgs args{points.view.as<float>(),
                         n,
                         d,
                         centers.view.as<float>(),
                         k,
                         d_sub,
                         columns.view.as<int64_t>(),
                         out.view.data,
                         is_wide};
  const float limit = largest_value(d_sub);
  int64_t bad_center = k, bad_point = n;
  {
    const py::gil_scoped_release release;
    for (int64_t i = 0; i < k && bad_center == k; ++i) {
      bool good = true;
      for (int64_t j = 0; j < d_sub; ++j) good &= std::abs(args.centers[i * d_sub + j]) <= limit;
      if (!good) bad_center = i;
    }
    if (bad_center == k) bad_point = nearest_centers(args, workspace.view.as<float>(), n_threads);
  }
  if (bad_center < k)
    throw_value("centers", args.centers + bad_center * d_sub, bad_center, nullptr, d_sub);
  if (bad_point < n)
    throw_value("points", args.points + bad_point * d, bad_point, args.columns, d_sub);
}

}  // namespace

void bind_nearest(py::module_& m) {
  m.def("nearest_workspace", &nearest_workspace_of);
  m.def("nearest_centers", &nearest_centers_checked);
}

}  // namespace ds
