// The pair lists of a rulebook as one argument: checked once, when made, instead of on every call
// (a pass over the lists costs as much as the smallest convolutions), and kept alive with the
// tensors it reads. They must not be written to afterwards.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <mutex>

#include "bind/tensor_arg.h"
#include "cpu/conv/conv.h"
#include "cpu/conv/row_groups.h"

namespace ds {

// Row groups and the tensors that hold them.
struct KeptGroups {
  pybind11::object order, start, taps, rows;
  RowGroups groups{};
  int64_t n_dst = -1;
};

class Pairs {
 public:
  Pairs(pybind11::object src, pybind11::object dst, pybind11::object start)
      : src_(std::move(src)), dst_(std::move(dst)), start_(std::move(start)) {
    const Check check{"Pairs"};
    TensorView s, d, o;
    view_of(src_, &s);
    view_of(dst_, &d);
    view_of(start_, &o);
    check.tensor("src_rows", s, DType::kInt32, {-1});
    check.tensor("dst_rows", d, DType::kInt32, {s.shape[0]});
    check.tensor("offset_start", o, DType::kInt64, {-1});
    check.starts("offset_start", o, s.shape[0]);
    list_ = {s.as<int32_t>(), d.as<int32_t>(), o.as<int64_t>(), o.shape[0] - 1};
    src_bound_ = ascending_bound("src_rows", list_.src);
    dst_bound_ = ascending_bound("dst_rows", list_.dst);
  }

  // Of a plan's own making: ascending by construction, so there is nothing to check.
  Pairs(pybind11::object src, pybind11::object dst, pybind11::object start, const PairList& list,
        int64_t n_src, int64_t n_dst)
      : src_(std::move(src)),
        dst_(std::move(dst)),
        start_(std::move(start)),
        list_(list),
        src_bound_(n_src),
        dst_bound_(n_dst) {}

  Pairs reversed() const {
    Pairs swapped = *this;
    std::swap(swapped.src_, swapped.dst_);
    std::swap(swapped.list_.src, swapped.list_.dst);
    std::swap(swapped.src_bound_, swapped.dst_bound_);
    swapped.side_ ^= 1;
    return swapped;
  }

  // The destination rows in groups, as far as they were kept; n_dst is -1 else. Both directions
  // keep theirs in one place, so that it does not matter which Pairs object asks.
  KeptGroups groups() const {
    const std::lock_guard<std::mutex> lock(store_->mutex);
    return store_->sides[side_];
  }
  void keep(KeptGroups kept) const {
    const std::lock_guard<std::mutex> lock(store_->mutex);
    std::swap(store_->sides[side_], kept);  // what was there before dies after the lock
  }
  int64_t src_bound() const { return src_bound_; }

  void check_fits(const Check& check, int64_t n_offsets, int64_t n_src, int64_t n_dst) const {
    const std::string where = std::string(check.operation) + ": pairs ";
    if (n_offsets != list_.n_offsets)
      throw pybind11::value_error(where + "have " + std::to_string(list_.n_offsets) +
                                  " offsets, the weight has " + std::to_string(n_offsets));
    if (src_bound_ > n_src || dst_bound_ > n_dst)
      throw pybind11::value_error(
          where + "name row " +
          std::to_string(src_bound_ > n_src ? src_bound_ - 1 : dst_bound_ - 1) +
          " of an operand with " + std::to_string(src_bound_ > n_src ? n_src : n_dst) + " rows");
  }

  void check_disjoint(const Check& check, const char* name, const TensorView& out) const {
    for (const pybind11::object* rows : {&src_, &dst_, &start_}) {
      TensorView view;
      view_of(*rows, &view);
      check.disjoint(name, out, "the pairs", view);
    }
  }

  const PairList& list() const { return list_; }
  int64_t n_pairs() const { return list_.offset_start[list_.n_offsets]; }
  pybind11::object src_rows() const { return src_; }
  pybind11::object dst_rows() const { return dst_; }
  pybind11::object offset_start() const { return start_; }

 private:
  // Rows of every list must be >= 0 and strictly ascending (the kernels write several rows at
  // once); returns 1 + the largest.
  int64_t ascending_bound(const char* name, const int32_t* rows) const {
    int64_t bound = 0;
    for (int64_t k = 0; k < list_.n_offsets; ++k) {
      int64_t previous = -1;
      bool good = true;
      for (int64_t i = list_.offset_start[k]; i < list_.offset_start[k + 1]; ++i) {
        good &= rows[i] > previous;
        previous = rows[i];
      }
      if (!good)
        throw pybind11::value_error(std::string("Pairs: ") + name +
                                    " must strictly ascend within each offset");
      bound = std::max(bound, previous + 1);
    }
    return bound;
  }

  pybind11::object src_, dst_, start_;
  PairList list_{};
  int64_t src_bound_ = 0, dst_bound_ = 0;
  struct Store {
    std::mutex mutex;
    KeptGroups sides[2];
  };
  std::shared_ptr<Store> store_ = std::make_shared<Store>();
  int side_ = 0;
};

}  // namespace ds
