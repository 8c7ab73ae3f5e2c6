"""Functions on SparseTensors, with the argument order and defaults of `torch.nn.functional`.

Every function takes a SparseTensor (and returns one), or a dense Tensor, which goes to torch's own
function. All are differentiable once. Kernels compute in float32 or float64; 16-bit operands are
computed in float32 and rounded once. All raise `TypeError` for types and mixed dtypes, `ValueError`
for shapes and ranges, `RuntimeError` for devices, `NotImplementedError` for other dtypes.
"""

from ._crossover import set_crossover
from ._functional_conv import (
    conv1d,
    conv2d,
    conv3d,
    conv4d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    inverse_conv1d,
    inverse_conv2d,
    inverse_conv3d,
    submanifold_conv1d,
    submanifold_conv2d,
    submanifold_conv3d,
    submanifold_conv4d,
)
from ._functional_masked import masked_conv1d, masked_conv2d, masked_conv3d, masked_linear
from ._functional_packed import packed_conv, sddmm, spmm, spmm_t
from ._functional_pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from ._global_pool import global_avg_pool, global_max_pool
from ._normalization import batch_norm
from ._resample import interpolate
from ._voxelize import devoxelize, voxelize

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv4d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "devoxelize",
    "global_avg_pool",
    "global_max_pool",
    "interpolate",
    "masked_conv1d",
    "masked_conv2d",
    "masked_conv3d",
    "masked_linear",
    "inverse_conv1d",
    "inverse_conv2d",
    "inverse_conv3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "packed_conv",
    "sddmm",
    "set_crossover",
    "spmm",
    "spmm_t",
    "submanifold_conv1d",
    "submanifold_conv2d",
    "submanifold_conv3d",
    "submanifold_conv4d",
    "voxelize",
]
