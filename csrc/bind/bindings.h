// Each bind_*.cpp adds its family to the module.
#pragma once
#include <pybind11/pybind11.h>

namespace ds {

void bind_rulebook(pybind11::module_& m);
void bind_conv(pybind11::module_& m);
void bind_kept(pybind11::module_& m);
void bind_windows(pybind11::module_& m);
void bind_rows(pybind11::module_& m);
void bind_nearest(pybind11::module_& m);
void bind_force(pybind11::module_& m);
void bind_spmm(pybind11::module_& m);
void bind_masked_conv(pybind11::module_& m);
void bind_spmm_tiles(pybind11::module_& m);
void bind_agree(pybind11::module_& m);
void bind_gpu(pybind11::module_& m);  // of CUDA builds, and of the emulated module

}  // namespace ds
