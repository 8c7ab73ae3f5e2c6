"""The kernels on raw tensors; kept by hand, checked against the module by `tests/test_commands.py`.

Every function checks dtype, rank, shape, strides, bounds and overlap of its tensors again
(TypeError, ValueError, RuntimeError) and releases the GIL while it computes. Results and workspaces
are tensors of the caller's. `n_threads` is a count; it never changes a result. See `ops.py` for
shapes and meanings.
"""

from collections.abc import Sequence
from typing import final

from torch import Tensor

__version__: str
compiler: str
has_cuda: bool
# Of a CUDA build only: `gpu`, the bindings of its kernels; `nvcc` and `cuda_architectures`, texts.

# ------------------------------------------------------------------ instruction sets
def isa_compiled() -> list[str]: ...
def isa_detected() -> str: ...
def isa_chosen() -> str: ...

# ------------------------------------------------------------------ rulebooks
@final
class Pairs:
    """Pair lists, checked once; must not be written to afterwards."""

    def __init__(self, src_rows: Tensor, dst_rows: Tensor, offset_start: Tensor, /) -> None: ...
    def reversed(self) -> Pairs: ...
    @property
    def n_pairs(self) -> int: ...
    @property
    def n_offsets(self) -> int: ...
    @property
    def src_rows(self) -> Tensor: ...
    @property
    def dst_rows(self) -> Tensor: ...
    @property
    def offset_start(self) -> Tensor: ...

@final
class PairPlan:
    """Counts pairs, then fills lists of that length."""

    def __init__(
        self,
        query_coords: Tensor,
        target_coords: Tensor,
        target_shape: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        symmetric: bool,
        /,
    ) -> None: ...
    def workspace(self) -> int: ...
    def count(self, workspace: Tensor, offset_start: Tensor, n_threads: int, /) -> int: ...
    def fill(self, query_rows: Tensor, target_rows: Tensor, n_threads: int, /) -> Pairs: ...

def axis_fan_out(kernel: int, stride: int, dilation: int, transposed: bool, /) -> int: ...
def axis_workspace(n_keys: int, kernel: int, /) -> int: ...
def dilate_axis(
    keys: Tensor,
    extent_in: int,
    extent_out: int,
    inner: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    transposed: bool,
    workspace: Tensor,
    out: Tensor,
    /,
) -> int: ...
def coords_to_keys(
    coords: Tensor, shape: Sequence[int], keys: Tensor, n_threads: int, /
) -> None: ...
def keys_to_coords(
    keys: Tensor, shape: Sequence[int], coords: Tensor, n_threads: int, /
) -> None: ...

# ------------------------------------------------------------------ convolution
def takes_row_groups(x: Tensor, c_out: int, groups: int, /) -> bool: ...
def has_row_groups(pairs: Pairs, n_dst: int, /) -> bool: ...
def plan_row_groups(
    pairs: Pairs, table: Tensor, keys: Tensor, order: Tensor, start: Tensor, n_threads: int, /
) -> int: ...
def fill_row_groups(
    pairs: Pairs,
    table: Tensor,
    order: Tensor,
    start: Tensor,
    taps: Tensor,
    rows: Tensor,
    n_threads: int,
    /,
) -> None: ...
def conv_workspace(
    x: Tensor, c_out: int, n_offsets: int, groups: int, n_dst: int, /
) -> int: ...
def packed_size(
    is_double: bool, c_in: int, c_out: int, n_offsets: int, groups: int, /
) -> int: ...
def conv_pack(
    weight: Tensor,
    c_in: int,
    c_out: int,
    groups: int,
    transposed: bool,
    workspace: Tensor,
    n_threads: int,
    /,
) -> None: ...
def conv(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    u: Tensor | None,
    u_start: Tensor | None,
    u_rows: Tensor | None,
    pairs: Pairs,
    groups: int,
    transposed: bool,
    workspace: Tensor,
    y: Tensor,
    n_threads: int,
    /,
) -> None: ...
def conv_weight_grad_workspace(x: Tensor, dy: Tensor, pairs: Pairs, groups: int, /) -> int: ...
def conv_weight_grad(
    x: Tensor,
    dy: Tensor,
    pairs: Pairs,
    groups: int,
    workspace: Tensor,
    dw: Tensor,
    n_threads: int,
    /,
) -> None: ...

# ------------------------------------------------------------------ images and pruned weights
class ConvMap:
    def __init__(
        self,
        lanes: Sequence[int],
        step: Sequence[int],
        pad: Sequence[int],
        out_start: Sequence[int],
        out_step: Sequence[int],
        at: Sequence[int],
    ) -> None: ...

def masked_conv_workspace(
    tiles: Tiles, map: ConvMap, x: Tensor, y: Tensor, groups: int, gradient: bool, n_threads: int
) -> int: ...
def masked_conv(
    tiles: Tiles,
    values: Tensor,
    map: ConvMap,
    x: Tensor,
    bias: Tensor | None,
    groups: int,
    workspace: Tensor,
    y: Tensor,
    n_threads: int,
) -> None: ...
def masked_conv_weight_grad(
    tiles: Tiles,
    map: ConvMap,
    x: Tensor,
    dy: Tensor,
    groups: int,
    workspace: Tensor,
    values: Tensor,
    n_threads: int,
) -> None: ...

# ------------------------------------------------------------------ pruned convolution
@final
class KeptLists:
    """The input channels that a mask keeps, per kernel offset and panel of output channels."""

    def __init__(self, mask: Tensor, groups: int, transposed: bool, is_double: bool, /) -> None: ...
    @property
    def n_values(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def share(self) -> float: ...

def kept_pack(lists: KeptLists, weight: Tensor, values: Tensor, n_threads: int, /) -> None: ...
def kept_conv(
    x: Tensor,
    lists: KeptLists,
    values: Tensor,
    bias: Tensor | None,
    u: Tensor | None,
    u_start: Tensor | None,
    u_rows: Tensor | None,
    pairs: Pairs,
    y: Tensor,
    n_threads: int,
    /,
) -> None: ...
def kept_weight_grad_workspace(lists: KeptLists, pairs: Pairs, n_dst: int, /) -> int: ...
def kept_weight_grad(
    x: Tensor,
    dy: Tensor,
    pairs: Pairs,
    lists: KeptLists,
    workspace: Tensor,
    dw: Tensor,
    n_threads: int,
    /,
) -> None: ...

# ------------------------------------------------------------------ windows and ground states
def window_table(
    pairs: Pairs,
    out_class: Tensor | None,
    tap_class: Tensor | None,
    rows_per_sample: int,
    out_batch: Tensor | None,
    table: Tensor,
    n_threads: int,
    /,
) -> None: ...
def plan_ground_taps(
    table: Tensor,
    n_class_rows: int,
    flags: Tensor,
    start: Tensor,
    u_offset_start: Tensor,
    n_threads: int,
    /,
) -> tuple[int, int]: ...
def fill_ground_taps(
    table: Tensor,
    n_class_rows: int,
    flags: Tensor,
    start: Tensor,
    u_offset_start: Tensor,
    u_rows: Tensor,
    class_rows: Tensor,
    n_threads: int,
    /,
) -> None: ...
def plan_every_tap(table: Tensor, n_class_rows: int, start: Tensor, n_threads: int, /) -> int: ...
def fill_every_tap(
    table: Tensor, n_class_rows: int, start: Tensor, u_rows: Tensor, n_threads: int, /
) -> None: ...
def invert_chunks(n_rows: int, n_values: int, n_threads: int, /) -> int: ...
def plan_inverse(rows: Tensor, counts: Tensor, start: Tensor, n_threads: int, /) -> int: ...
def fill_inverse(rows: Tensor, counts: Tensor, index: Tensor, n_threads: int, /) -> None: ...

# ------------------------------------------------------------------ pools and sums over rows
def window_max(
    x: Tensor,
    ground_rows: Tensor | None,
    table: Tensor,
    y: Tensor,
    arg: Tensor,
    n_threads: int,
    /,
) -> None: ...
def window_sum(
    x: Tensor, ground_rows: Tensor | None, table: Tensor, y: Tensor, n_threads: int, /
) -> None: ...
def window_max_grad(
    dy: Tensor,
    arg: Tensor,
    start: Tensor,
    index: Tensor,
    n_offsets: int,
    dx: Tensor,
    workspace: Tensor,
    n_threads: int,
    /,
) -> None: ...
def join_rows(a: Tensor, b: Tensor, keys: Tensor, from_a: Tensor, from_b: Tensor, /) -> int: ...
def add_rows(
    a: Tensor,
    ground_a: Tensor | None,
    from_a: Tensor,
    b: Tensor,
    ground_b: Tensor | None,
    from_b: Tensor,
    scale: float,
    y: Tensor,
    n_threads: int,
    /,
) -> None: ...
def scatter_rows(rows: Tensor, place: Tensor, out: Tensor, n_threads: int, /) -> None: ...
def segment_workspace(is_double: bool, n_positions: int, n_channels: int, /) -> int: ...
def segment_sum(
    values: Tensor,
    rows: Tensor | None,
    start: Tensor,
    bias: Tensor | None,
    workspace: Tensor,
    out: Tensor,
    n_threads: int,
    /,
) -> None: ...
def segment_sum_sq(
    values: Tensor, start: Tensor, mean: Tensor, workspace: Tensor, out: Tensor, n_threads: int, /
) -> None: ...

# ------------------------------------------------------------------ codes
def nearest_workspace(n: int, k: int, d_sub: int, n_threads: int, /) -> int: ...
def nearest_centers(
    points: Tensor,
    centers: Tensor,
    columns: Tensor | None,
    workspace: Tensor,
    out: Tensor,
    n_threads: int,
    /,
) -> None: ...

# ------------------------------------------------------------------ forces between filters
def force_workspace(
    is_double: bool, n: int, d: int, table_rows: int, n_threads: int, /
) -> int: ...
def constant_forces(
    unit: Tensor,
    lengths: Tensor,
    table_rows: int,
    workspace: Tensor,
    out: Tensor,
    n_threads: int,
    /,
) -> None: ...

# ------------------------------------------------------------------ pruned weights on matrix tiles
@final
class TileBlocks:
    """A pruned bfloat16 weight in 32 x 32 blocks, checked once; must not be written to."""

    def __init__(
        self,
        start: Tensor,
        columns: Tensor,
        place: Tensor,
        masks: Tensor,
        values: Tensor,
        n_out: int,
        n_in: int,
        /,
    ) -> None: ...
    @property
    def n_out(self) -> int: ...
    @property
    def n_in(self) -> int: ...
    @property
    def start(self) -> Tensor: ...
    @property
    def columns(self) -> Tensor: ...
    @property
    def place(self) -> Tensor: ...
    @property
    def masks(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...

def plan_tile_blocks(
    row_start: Tensor,
    columns: Tensor,
    n_in: int,
    counts: Tensor,
    start: Tensor,
    n_threads: int,
    /,
) -> tuple[int, int]: ...
def fill_tile_blocks(
    row_start: Tensor,
    columns: Tensor,
    values: Tensor,
    n_in: int,
    counts: Tensor,
    start: Tensor,
    block_columns: Tensor,
    place: Tensor,
    masks: Tensor,
    block_values: Tensor,
    n_threads: int,
    /,
) -> None: ...
def tile_spmm_workspace(n_rows: int, n_in: int, /) -> int: ...
def tile_spmm(
    x: Tensor,
    blocks: TileBlocks,
    bias: Tensor | None,
    workspace: Tensor,
    y: Tensor,
    n_threads: int,
    /,
) -> None: ...
def tile_conv(
    x: Tensor,
    blocks: TileBlocks,
    half_start: Tensor,
    block_start: Tensor,
    row_stride: int,
    out_rows: Tensor,
    bias: Tensor | None,
    y: Tensor,
    n_threads: int,
    /,
) -> None: ...

# ------------------------------------------------------------------ codes of clusterings
def plan_agreeing(
    center_codes: Tensor, histogram: Tensor, n: int, n_threads: int, /
) -> tuple[int, bool, int, int]: ...
def most_agreeing(
    codes: Tensor,
    columns: Tensor,
    center_codes: Tensor,
    n_values: int,
    by_lists: bool,
    workspace: Tensor,
    out: Tensor,
    n_threads: int,
    /,
) -> None: ...


class Tiles:
    def __init__(
        self,
        starts: Tensor,
        columns: Tensor,
        n_rows: int,
        n_columns: int,
        block_columns: int,
        unit_rows: int = 1,
        bits: Tensor | None = None,
    ) -> None: ...
    @property
    def bits(self) -> Tensor | None: ...
    @property
    def starts(self) -> Tensor: ...
    @property
    def columns(self) -> Tensor: ...
    @property
    def n_entries(self) -> int: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_columns(self) -> int: ...
    @property
    def block_columns(self) -> int: ...
    @property
    def unit_rows(self) -> int: ...

def spmm_workspace(
    tiles: Tiles, is_double: bool, plain: bool, m: int, n_threads: int, /
) -> int: ...
def spmm(
    tiles: Tiles,
    values: Tensor,
    scales: Tensor | None,
    x: Tensor,
    bias: Tensor | None,
    workspace: Tensor,
    y: Tensor,
    n_threads: int,
    /,
) -> None: ...
def sddmm_workspace(tiles: Tiles, is_double: bool, m: int, /) -> int: ...
def sddmm(
    tiles: Tiles, dy: Tensor, x: Tensor, workspace: Tensor, values: Tensor, n_threads: int, /
) -> None: ...
