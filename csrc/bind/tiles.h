// A pruned weight's structure as a Python object: checked once, when it is made.
#pragma once
#include <vector>

#include "bind/tensor_arg.h"
#include "cpu/spmm/spmm.h"

namespace ds {

class TilesObject {
 public:
  TilesObject(pybind11::object starts, pybind11::object columns, int64_t n_rows, int64_t n_columns,
              int64_t block_columns, int64_t unit_rows, pybind11::object bits);

  const Tiles& tiles() const { return tiles_; }
  int64_t n_entries() const { return tiles_.starts[tiles_.n_blocks() * tiles_.n_units()]; }
  // Kept values of a bitmask; -1 where all rows of a unit's columns are kept.
  int64_t n_values() const { return n_values_; }
  const uint16_t* bits() const { return bits_data_; }
  const int64_t* places() const { return places_.data(); }
  pybind11::object bits_tensor() const { return bits_; }
  pybind11::object starts() const { return starts_; }
  pybind11::object columns() const { return columns_; }
  void check_disjoint(const Check& check, const char* name, const TensorView& out) const;

 private:
  pybind11::object starts_, columns_, bits_;
  Tiles tiles_{};
  const uint16_t* bits_data_ = nullptr;
  std::vector<int64_t> places_;
  int64_t n_values_ = -1;
};

}  // namespace ds
