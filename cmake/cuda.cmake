# DS_CUDA: whether CUDA kernels are built. ON stops where they cannot be; AUTO says why and goes on, for
# nvcc may be there and not work: half an installation, or a host compiler that it does not know.
set(DS_CUDA OFF)
set(DS_CUDA_REFUSAL "")
string(TOUPPER "${DOUBLESPARSE_CUDA}" DS_CUDA_WISH)
if(DS_CUDA_WISH STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)  # compiles and links a program, in a project of its own
  if(CMAKE_CUDA_COMPILER)
    set(DS_CUDA ON)
  else()
    set(DS_CUDA_REFUSAL "no nvcc that works was found")
  endif()
elseif(DS_CUDA_WISH)
  set(DS_CUDA ON)
endif()

if(DS_CUDA)
  # 80 runs on everything up to 89, 90 on Hopper, and PTX of the last on what came after it. Others:
  # -DCMAKE_CUDA_ARCHITECTURES=86 or CUDAARCHS=native.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit QUIET)
  if(CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA" AND CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
    set(DS_CUDA_REFUSAL "nvcc 12 or newer is needed, found ${CMAKE_CUDA_COMPILER_VERSION}")
  elseif(NOT TARGET CUDA::cudart_static)
    set(DS_CUDA_REFUSAL "libcudart_static.a was not found beside ${CMAKE_CUDA_COMPILER}")
  endif()
endif()

if(DS_CUDA_REFUSAL)
  if(NOT DS_CUDA_WISH STREQUAL "AUTO")
    message(FATAL_ERROR "doublesparse: DOUBLESPARSE_CUDA=${DOUBLESPARSE_CUDA}, but ${DS_CUDA_REFUSAL}")
  endif()
  set(DS_CUDA OFF)
  message(STATUS "doublesparse: built without CUDA: ${DS_CUDA_REFUSAL}")
endif()

if(DS_CUDA)
  string(REPLACE ";" " " DS_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
  message(STATUS "doublesparse: CUDA ${CMAKE_CUDA_COMPILER_VERSION}, ${DS_CUDA_ARCHITECTURES}")
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  add_library(ds_cuda OBJECT ${DS_CUDA_SOURCES})
  target_include_directories(ds_cuda PRIVATE csrc)
  set_target_properties(ds_cuda PROPERTIES
    CUDA_VISIBILITY_PRESET hidden
    CUDA_SEPARABLE_COMPILATION OFF)
  # No contraction, as on the host: a * b + c is rounded twice wherever it is compiled, and once where a
  # kernel says fused(). So kernels, their emulation and references round alike.
  target_compile_options(ds_cuda PRIVATE -fmad=false
    -Xcompiler=-Wall,-Wextra,-fno-math-errno,-ffp-contract=off)
endif()
