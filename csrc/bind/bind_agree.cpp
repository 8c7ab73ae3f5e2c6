// Codes of clusterings: which centre agrees with a point in the most votes.
#include <string>

#include "bind/bindings.h"
#include "bind/tensor_arg.h"
#include "cpu/codes/agree.h"

namespace py = pybind11;

namespace ds {
namespace {

// Calls f(uint8_t{}) or f(uint16_t{}).
template <class F>
auto for_code(DType dtype, const F& f) {
  return dtype == DType::kUInt8 ? f(uint8_t{}) : f(uint16_t{});
}

DType code_dtype(const Check& check, const char* name, const TensorView& t) {
  if (t.dtype != DType::kUInt8 && t.dtype != DType::kUInt16)
    throw py::type_error(std::string(check.operation) + ": " + name + " must be uint8 or uint16");
  return t.dtype;
}

DType check_centers(const Check& check, const Arg& center_codes) {
  const DType dtype = code_dtype(check, "center_codes", center_codes.view);
  check.tensor("center_codes", center_codes.view, dtype, {-1, -1});
  check.at_least("s", center_codes.view.shape[0], 1);
  check.at_least("k", center_codes.view.shape[1], 1);
  if (center_codes.view.shape[1] > kMostAgreeCenters)
    throw py::value_error(std::string(check.operation) + ": center_codes must have at most " +
                          std::to_string(kMostAgreeCenters) + " columns, got " +
                          std::to_string(center_codes.view.shape[1]));
  if (center_codes.view.shape[0] > INT32_MAX)
    throw py::value_error(std::string(check.operation) + ": at most 2^31 - 1 clusterings vote");
  return dtype;
}

// Returns (n_values, by lists, bytes of workspace by compares, by lists).
py::tuple plan_agreeing_checked(const Arg& center_codes, const Arg& histogram, int64_t n,
                                int n_threads) {
  const Check check{"most_agreeing"};
  const DType dtype = check_centers(check, center_codes);
  check.tensor("histogram", histogram.view, DType::kInt64, {65536 + 1});
  check.apart({{"histogram", histogram.view}}, {{"center_codes", center_codes.view}});
  const int64_t s = center_codes.view.shape[0], k = center_codes.view.shape[1];
  const int code_bytes = static_cast<int>(bytes_of(dtype));
  AgreePlan plan;
  {
    const py::gil_scoped_release release;
    plan = for_code(dtype, [&](auto zero) {
      return agree_plan(center_codes.view.as<decltype(zero)>(), s, k, histogram.view.as<int64_t>());
    });
  }
  const auto bytes = [&](AgreeWay way) {
    return agree_workspace(way, plan.n_values, s, k, code_bytes, n_threads);
  };
  return py::make_tuple(plan.n_values, agree_way(plan, n, s, k, code_bytes) == AgreeWay::kLists,
                        bytes(AgreeWay::kCompare), bytes(AgreeWay::kLists));
}

template <class Code>
bool within(const TensorView& codes, int64_t n_values) {
  Code most = 0;
  for (int64_t i = 0; i < codes.n_elements(); ++i)
    most = codes.as<Code>()[i] > most ? codes.as<Code>()[i] : most;
  return most + 2 <= n_values;
}

void most_agreeing_checked(const Arg& codes, const Arg& columns, const Arg& center_codes,
                           int64_t n_values, bool by_lists, const Arg& workspace, const Arg& out,
                           int n_threads) {
  const Check check{"most_agreeing"};
  const DType dtype = check_centers(check, center_codes);
  const int64_t s = center_codes.view.shape[0], k = center_codes.view.shape[1];
  check.tensor("codes", codes.view, dtype, {-1, -1});
  const int64_t n = codes.view.shape[1];
  check.tensor("columns", columns.view, DType::kInt64, {s});
  check.rows("columns", columns.view, 0, codes.view.shape[0]);
  const DType out_dtype = code_dtype(check, "out", out.view);
  check.tensor("out", out.view, out_dtype, {n});
  if (k > 256 && out_dtype == DType::kUInt8)
    throw py::value_error("most_agreeing: out must be uint16 for " + std::to_string(k) +
                          " centres, got uint8");
  const AgreeWay way = by_lists ? AgreeWay::kLists : AgreeWay::kCompare;
  if (by_lists) {
    const bool good =
        k <= kMostListedCenters && n_values <= 65537 && for_code(dtype, [&](auto zero) {
          return within<decltype(zero)>(center_codes.view, n_values);
        });
    if (!good)
      throw py::value_error("most_agreeing: n_values = " + std::to_string(n_values) +
                            " is not the plan of these center_codes, or " + std::to_string(k) +
                            " centres are too many for lists");
  }
  check.at_least("n_threads", n_threads, 1);
  check.tensor(
      "workspace", workspace.view, DType::kInt64,
      {(agree_workspace(way, n_values, s, k, static_cast<int>(bytes_of(dtype)), n_threads) + 64) /
       8});
  check.apart(
      {{"out", out.view}, {"workspace", workspace.view}},
      {{"codes", codes.view}, {"columns", columns.view}, {"center_codes", center_codes.view}});
  const uintptr_t address = reinterpret_cast<uintptr_t>(workspace.view.data);
  uint8_t* const aligned = reinterpret_cast<uint8_t*>((address + 63) / 64 * 64);
  const py::gil_scoped_release release;
  for_code(dtype, [&](auto zero) {
    using Code = decltype(zero);
    most_agreeing<Code>(
        {codes.view.as<Code>(), n, columns.view.as<int64_t>(), center_codes.view.as<Code>(), s, k,
         out.view.data, out_dtype == DType::kUInt16, aligned},
        way, n_values, n_threads);
    return 0;
  });
}

}  // namespace

void bind_agree(py::module_& m) {
  m.def("plan_agreeing", &plan_agreeing_checked);
  m.def("most_agreeing", &most_agreeing_checked);
}

}  // namespace ds
