"""Pruned weights without their zeros: `PackedWeight`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ._device import CPU
from ._packed_checks import cast_values, check_finite, check_stored, check_tensor, kept_matrix
from ._packed_codec import as_integers, decode, encode, quantize, select
from ._packed_layout import DTYPES, PATTERNS, Layout, check_extents
from ._patterns import Block, Pattern, Unstructured, check_pattern, from_matrix, to_matrix

_FLOATS = DTYPES[:-1]


class PackedWeight:
    """The kept weights of a pruned weight, and where they belong. It never changes.

    Made by `pack` or `from_tensors`. What is stored does not depend on the machine: the kept values
    in the order of the matrix view (column = offset * c_in/groups + channel; for `Block` patterns
    whole blocks), and for every weight or block one bit, or for every kept one its distance from
    the last, whichever is smaller. At 90 % sparse that is 5 bytes a kept weight in float32 (an
    eighth of the dense weight), 3 in bfloat16 and 2 in int8.

    Two are equal where shape, pattern, mask, dtype and the bits of values and scales are. It
    pickles, and `torch.load(weights_only=True)` reads it. A deep copy is the object itself.

    Attributes:
        shape: of the weight, (c_out, c_in/groups, *kernel).
        pattern: of the mask.
        dtype: of the stored values; torch.int8 with a scale per row.
        n_kept: number of kept weights.

    Example:
        >>> import torch, doublesparse as ds
        >>> weight = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 4.0]])
        >>> packed = ds.PackedWeight.pack(weight)
        >>> packed
        PackedWeight(shape=(2, 4), kept=3, density=37.5%, Unstructured(), float32, 69 bytes)
        >>> torch.equal(packed.unpack(), weight)
        True
        >>> ds.PackedWeight.from_tensors(packed.tensors()) == packed
        True
    """

    __slots__ = ("_layout", "_tensors", "_forms", "_nbytes", "_device", "__weakref__")

    _layout: Layout
    _tensors: dict[str, Tensor]  # without "values" where a kernel's form holds them: `keep_form`
    _forms: dict[Any, Any]  # what kernels made of it: neither copied, pickled nor compared
    _nbytes: int | None  # None: nobody asked yet
    _device: torch.device

    def __init__(self) -> None:
        raise TypeError(
            "PackedWeight: must be made from a weight, got a call of the class; "
            "use PackedWeight.pack(weight) or PackedWeight.from_tensors(tensors)"
        )

    @classmethod
    def _of(
        cls, layout: Layout, tensors: dict[str, Tensor], device: torch.device = CPU
    ) -> PackedWeight:
        packed = object.__new__(cls)
        nbytes = sum(t.numel() * t.element_size() for t in tensors.values())
        for name, value in zip(cls.__slots__, (layout, tensors, {}, nbytes, device), strict=False):
            object.__setattr__(packed, name, value)
        return packed

    @classmethod
    def of_form(cls, shape: tuple[int, ...], pattern: Pattern, form: Any) -> PackedWeight:
        """For kernels: the packed weight whose kept values are in a form; see `keep_form`."""
        layout = Layout(shape, pattern, form.values.dtype, len(form.values))
        packed = cls._of(layout, {"meta": layout.meta()})
        object.__setattr__(packed, "_nbytes", None)
        packed.keep_form(form)
        return packed

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"PackedWeight: must not change, got a new {name}; pack another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"PackedWeight: must not change, got del {name}; pack another one")

    @classmethod
    def pack(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        pattern: Pattern | None = None,
        dtype: torch.dtype | None = None,
    ) -> PackedWeight:
        """Take the kept weights out of a dense weight.

        Args:
            weight: (c_out, c_in/groups, *kernel) as of `nn.Linear` and `nn.Conv1d..3d`; float32,
                float64, bfloat16 or float16, any strides. Kept NaN and infinities stay what they
                are.
            mask: bool of the same shape, True where a weight is kept, also if it is 0. None keeps
                what is not 0; with a `Block` pattern, all of each block that has such a weight.
            pattern: that the mask follows; None: `Unstructured()`.
            dtype: of the stored values; None: the weight's. torch.int8 rounds to 255 levels per
                row: multiples of max|w| / 127, half to even. A row of zeros gets scale 1.

        Returns:
            the packed weight; no gradient goes through it.

        Raises:
            TypeError: arguments of other types or dtypes.
            ValueError: shapes that do not fit, a mask that does not follow the pattern, values that
                overflow float16, NaN or infinite values for int8.
            NotImplementedError: tensors on another device than the CPU or CUDA, or without data.
        """
        check_tensor(weight, "weight", _FLOATS)
        device, weight = weight.device, weight.detach().cpu()
        pattern = Unstructured() if pattern is None else pattern
        check_pattern("PackedWeight.pack", pattern)
        if type(pattern) not in PATTERNS:
            raise TypeError(
                f"PackedWeight.pack: pattern must be one of doublesparse's own, got {pattern}; "
                "pass one of these, or None"
            )
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(
                f"PackedWeight.pack: dtype must be one of {DTYPES} or None, got {dtype!r}; "
                "pass one of them"
            )
        try:
            check_extents(weight.shape)
            layout = Layout(tuple(weight.shape), pattern, dtype or weight.dtype, 0)
            keep = kept_matrix(weight, mask, layout)
        except ValueError as error:
            raise ValueError(f"PackedWeight.pack: {error}; pass another one") from error
        matrix = to_matrix(weight)
        layout = Layout(layout.shape, pattern, layout.dtype, int(keep.sum()))
        tensors = {"meta": layout.meta()}
        if layout.dtype == torch.int8:
            matrix = torch.where(keep, matrix, 0)
            check_finite(matrix)
            matrix, tensors["scales"] = quantize(matrix)
        return cls._of(layout, tensors | _canonical(matrix, keep, layout), device)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PackedWeight:
        """The inverse of `tensors`, on the CPU; tensors of the CPU are kept, not copied.

        Raises:
            TypeError: no mapping of names to tensors.
            ValueError: an unknown version, missing or unknown names, or tensors that do not fit
                each other: every size and every index is checked.
            NotImplementedError: tensors on another device than the CPU or CUDA, or without data.
        """
        if not isinstance(tensors, Mapping):
            raise TypeError(
                f"PackedWeight.from_tensors: tensors must be a mapping, got "
                f"{type(tensors).__name__}; pass what PackedWeight.tensors() returned"
            )
        for name, tensor in tensors.items():
            check_tensor(tensor, str(name), None, "PackedWeight.from_tensors")
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            layout = check_stored(own)
        except ValueError as error:
            raise ValueError(
                f"PackedWeight.from_tensors: {error}; pass what PackedWeight.tensors() returned"
            ) from error
        return cls._of(layout, own)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored: plain tensors that do not depend on the machine; safetensors takes them.

        Returns:
            "meta": int64, version, shape and pattern. "values": (n_kept,), or (n_blocks, r, c) with
            zeros where a block sticks out of the matrix. "bitmask": uint8, a bit per weight or
            block; or "gaps": uint8 or int16, how many are skipped before each kept one. "scales":
            (c_out,), for int8 only. On the CPU, the packed weight's own memory: do not write to it.
        """
        stored = self._tensors
        if "values" not in stored:
            matrix, keep = self._forms["only"].dense()
            stored = stored | _canonical(matrix, keep, self._layout)
        return dict(stored)

    def stored_matrix(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """For kernels: the matrix view of the stored values, of the mask, and the scales; CPU."""
        tensors, layout = self.tensors(), self._layout
        values = tensors["values"]
        units = torch.zeros(layout.n_units, *layout.block, dtype=values.dtype, device="cpu")
        units[self._units()] = values.reshape(-1, *layout.block)
        keep = to_matrix(self._mask())
        return layout.from_units(units), keep, tensors.get("scales")

    def keep_form(self, form: Any) -> None:
        """For kernels: what is stored lives on in this form alone.

        Args:
            form: its `dense()` is the first two of `stored_matrix`.
        """
        self._forms["only"] = form
        stored = {name: t for name, t in self._tensors.items() if name in ("meta", "scales")}
        object.__setattr__(self, "_tensors", stored)

    # ------------------------------------------------------------- what it is
    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        return torch.Size(self._layout.shape)

    @property
    def pattern(self) -> Pattern:
        """Of the mask."""
        return self._layout.pattern

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored values."""
        return self._layout.dtype

    @property
    def device(self) -> torch.device:
        """Where its products run, and where `unpack` and others return tensors."""
        return self._device

    @property
    def n_kept(self) -> int:
        """Number of kept weights."""
        return self._layout.n_kept

    def numel(self) -> int:
        """Number of weights, kept or not."""
        n_rows, n_columns = self._layout.matrix_shape
        return n_rows * n_columns

    @property
    def density(self) -> float:
        """Kept weights as a share of all; 0 where there are none."""
        return self.n_kept / max(self.numel(), 1)

    @property
    def nbytes(self) -> int:
        """Bytes of what `tensors` returns."""
        if self._nbytes is None:
            nbytes = sum(t.numel() * t.element_size() for t in self.tensors().values())
            object.__setattr__(self, "_nbytes", nbytes)
        return self._nbytes or 0

    @property
    def scales(self) -> Tensor | None:
        """(c_out,) for int8: a stored value is multiplied by its row's; None otherwise."""
        return self._tensors.get("scales")

    def to(self, device: torch.device | str) -> PackedWeight:
        """For products on another device, which gets on first use what its kernels read.

        Raises:
            NotImplementedError: another device than the CPU and CUDA.
        """
        target = torch.empty(0, device=device).device  # "cuda" is the current one
        if target.type not in ("cpu", "cuda"):
            raise NotImplementedError(
                f"PackedWeight.to: device must be cpu or cuda, got {device}; use unpack().to(...)"
            )
        return self if target == self._device else self._of(self._layout, self.tensors(), target)

    # ------------------------------------------------------------- back again
    def unpack(self) -> Tensor:
        """The dense weight, zeros where nothing is kept: (c_out, c_in/groups, *kernel).

        Returns:
            of the packed dtype; from int8 of the scales' dtype, which is float32 unless the weight
            was float64.
        """
        tensors, layout = self.tensors(), self._layout
        values, scales = tensors["values"], tensors.get("scales")
        dtype = layout.dtype if scales is None else scales.dtype
        units = torch.zeros(layout.n_units, *layout.block, dtype=dtype, device="cpu")
        units[self._units()] = values.to(dtype).reshape(-1, *layout.block)
        matrix = layout.from_units(units)
        matrix = matrix if scales is None else matrix * scales[:, None]
        return from_matrix(matrix, layout.shape).contiguous().to(self._device)

    def mask(self) -> Tensor:
        """Bool of the weight's shape: True where a weight is kept."""
        return self._mask().to(self._device)

    def _mask(self) -> Tensor:
        units = torch.zeros(self._layout.n_units, 1, 1, dtype=torch.bool, device="cpu")
        units[self._units()] = True
        units = units.expand(-1, *self._layout.block)
        return from_matrix(self._layout.from_units(units), self.shape).contiguous()

    def csr(self) -> tuple[Tensor, Tensor, Tensor]:
        """Compressed rows of the matrix view, columns ascending; made by every call, on the CPU.

        Returns:
            row_start (c_out + 1,) int64; columns (n_kept,) int32; values (n_kept,) as stored, so
            that int8 still wants its row's scale.
        """
        values, layout = self.tensors()["values"], self._layout
        n_rows, n_columns = layout.matrix_shape
        units = self._units()
        if isinstance(layout.pattern, Block):
            rows, columns, inside = layout.cells(units)
            units = (rows * n_columns + columns)[inside]
            units, order = torch.sort(units)  # stored block by block
            values = values[inside][order]
        return (
            _row_start(units, n_rows, n_columns),
            units.remainder_(max(n_columns, 1)).int(),
            values,
        )

    def bsr(self) -> tuple[Tensor, Tensor, Tensor]:
        """Compressed rows of blocks; made anew by every call; on the CPU.

        Returns:
            row_start (ceil(c_out / r) + 1,) int64; columns (n_blocks,) int32, of the matrix view,
            where a block starts; values (n_blocks, r, c) as stored, zeros where a block sticks out.

        Raises:
            ValueError: the pattern is no `Block`.
        """
        if not isinstance(self.pattern, Block):
            raise ValueError(
                f"PackedWeight.bsr: pattern must be a Block, got {self.pattern}; use csr()"
            )
        units = self._units()
        columns = self._layout.cells(units)[1][:, 0, 0].int()
        return _row_start(units, *self._layout.grid), columns, self.tensors()["values"]

    def _units(self) -> Tensor:
        """Numbers of the kept units: checked again, for who knows who wrote to the tensors."""
        units = decode(self.tensors(), self._layout.n_units)
        if len(units) != len(self.tensors()["values"]):
            raise ValueError(
                f"PackedWeight: tensors must keep {len(self.tensors()['values'])} units, got "
                f"{len(units)}; do not write to what tensors() or a state_dict returned"
            )
        return units

    # ------------------------------------------------------------- manners
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedWeight):
            return NotImplemented
        if self is other:
            return True
        mine, theirs = self.tensors(), other.tensors()
        return (
            self._layout == other._layout
            and all(_same_bits(mine.get(name), theirs.get(name)) for name in ("values", "scales"))
            and torch.equal(self._units(), other._units())
        )

    def __hash__(self) -> int:
        return hash(self._layout)

    def __copy__(self) -> PackedWeight:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return self

    def __reduce__(self) -> Any:
        return _restore, (self.tensors(),)

    def __repr__(self) -> str:
        return (
            f"PackedWeight(shape={tuple(self.shape)}, kept={self.n_kept}, "
            f"density={self.density:.1%}, {self.pattern}, "
            f"{str(self.dtype).removeprefix('torch.')}, {self.nbytes:,} bytes)"
        )


def _canonical(matrix: Tensor, keep: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Values and mask as they are stored, of a matrix in any order."""
    if isinstance(layout.pattern, Block):
        matrix = torch.where(keep, matrix, 0)
        keep = layout.to_units(keep).any(-1).any(-1)
        values = layout.to_units(matrix)[keep]
    else:
        values = select(matrix, keep)
    return {"values": cast_values(values, layout)} | encode(keep)


def _restore(tensors: dict[str, Tensor]) -> PackedWeight:
    """Unpickle."""
    return PackedWeight.from_tensors(tensors)


def _row_start(units: Tensor, n_rows: int, n_columns: int) -> Tensor:
    """Where each row starts in ascending row-major numbers."""
    return torch.searchsorted(units, torch.arange(n_rows + 1, device="cpu") * n_columns)


def _same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(as_integers(a), as_integers(b))
