#include <pthread.h>

#include "bind/bindings.h"
#include "core/parallel.h"
#include "cpu/kernels.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() =
      "doublesparse kernels on raw tensors; doublesparse.ops is the checked front of this module.";
  m.attr("__version__") = DS_VERSION;
  m.attr("compiler") = __VERSION__;
  pthread_atfork(nullptr, nullptr, [] { ds::forked_child() = true; });
  m.def("isa_compiled", [] {
    py::list names;
    for (int i = 0; i < ds::kNumIsas; ++i)
      if (ds::kernel_table_of(static_cast<ds::Isa>(i)))
        names.append(ds::isa_name(static_cast<ds::Isa>(i)));
    return names;
  });
  m.def("isa_detected", [] { return ds::isa_name(ds::detected_isa()); });
  m.def("isa_chosen", [] { return ds::isa_name(ds::chosen_isa()); });
#ifdef DS_HAVE_CUDA
  m.attr("has_cuda") = true;
  m.attr("nvcc") = DS_NVCC;
  m.attr("cuda_architectures") = DS_CUDA_ARCHITECTURES;
  py::module_ gpu = m.def_submodule("gpu", "the same on CUDA tensors");
  ds::bind_gpu(gpu);
#else
  m.attr("has_cuda") = false;
#endif
  ds::bind_rulebook(m);
  ds::bind_conv(m);
  ds::bind_kept(m);
  ds::bind_windows(m);
  ds::bind_rows(m);
  ds::bind_nearest(m);
  ds::bind_force(m);
  ds::bind_spmm(m);
  ds::bind_masked_conv(m);
  ds::bind_spmm_tiles(m);
  ds::bind_agree(m);
}
