// A pruned weight's structure as a Python object: checked once, when it is made.
#pragma once
#include "bind/tensor_arg.h"
#include "cpu/spmm/spmm.h"

namespace ds {

class TilesObject {
 public:
  TilesObject(pybind11::object starts, pybind11::object columns, int64_t n_rows, int64_t n_columns,
              int64_t block_columns, int64_t unit_rows);

  const Tiles& tiles() const { return tiles_; }
  int64_t n_entries() const { return tiles_.starts[tiles_.n_blocks() * tiles_.n_units()]; }
  pybind11::object starts() const { return starts_; }
  pybind11::object columns() const { return columns_; }
  void check_disjoint(const Check& check, const char* name, const TensorView& out) const;

 private:
  pybind11::object starts_, columns_;
  Tiles tiles_{};
};

}  // namespace ds
