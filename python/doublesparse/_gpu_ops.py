"""The operators of `ops`, on CUDA tensors: same names, arguments and results, row order included.

`ops` leads here where its first tensor is on a CUDA device. Nothing here reads a number back from
the device but the sizes of results that depend on data.
"""

from __future__ import annotations

from ._gpu_conv import conv as conv
from ._gpu_conv import conv_input_grad as conv_input_grad
from ._gpu_conv import pack_weight as pack_weight
from ._gpu_conv_grad import conv_weight_grad as conv_weight_grad
from ._gpu_conv_grad import depthwise as depthwise
from ._gpu_masked_conv import masked_conv as masked_conv
from ._gpu_masked_conv import masked_conv_input_grad as masked_conv_input_grad
from ._gpu_masked_conv import masked_conv_weight_grad as masked_conv_weight_grad
from ._gpu_masked_conv import pack_masked_weight as pack_masked_weight
from ._gpu_pairs import GpuPairs
from ._gpu_rulebook import build_pairs as build_pairs
from ._gpu_rulebook import coords_of_keys as coords_of_keys
from ._gpu_rulebook import linear_keys as linear_keys
from ._gpu_rulebook import output_coords as output_coords
from ._gpu_windows import add_rows as add_rows
from ._gpu_windows import every_tap as every_tap
from ._gpu_windows import ground_taps as ground_taps
from ._gpu_windows import invert_rows as invert_rows
from ._gpu_windows import join_rows as join_rows
from ._gpu_windows import scatter_rows as scatter_rows
from ._gpu_windows import segment_sum as segment_sum
from ._gpu_windows import segment_sum_sq as segment_sum_sq
from ._gpu_windows import window_max as window_max
from ._gpu_windows import window_max_grad as window_max_grad
from ._gpu_windows import window_sum as window_sum
from ._gpu_windows import window_table as window_table

Pairs = GpuPairs
