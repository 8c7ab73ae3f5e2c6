"""SparseTensor: the features of the active sites, and the ground state of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._autograd import merge_repeats, scatter_rows
from ._checks import check_duplicates, check_features, check_shape, repeated
from ._ground import GroundState, differs, make_ground
from ._memo import remembered
from ._torch_compat import function_name
from .sites import Sites

__all__ = ["HANDLERS", "GroundState", "SparseTensor", "implements"]

HANDLERS: dict[Callable[..., Any], Callable[..., Any]] = {}

_KEEP: Any = object()  # `replace` leaves the ground as it is; None is a ground of its own


def implements(*functions: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the handler that torch calls for these functions when an argument is sparse."""

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


@dataclass(init=False, eq=False, repr=False)
class SparseTensor:
    """A batch of grids (B, C, *spatial_shape) whose inactive sites hold the ground state.

    A dense network takes it as it is and gives the dense network's answer:

        >>> import torch, doublesparse as ds
        >>> image = torch.zeros(2, 1, 8, 8)
        >>> image[0, 0, 2, 3] = 1.0
        >>> x = ds.SparseTensor.from_dense(image)
        >>> net = torch.nn.Conv2d(1, 4, 3, padding=1)
        >>> torch.allclose(net(x).to_dense(), net(image), atol=1e-6)
        True

    Attributes:
        features: (n_sites, C), one row per active site.
        sites: which sites those are, in lexicographic order.
        ground: what the others hold; None where inactive sites do not exist (the convention of
            spconv and MinkowskiEngine).
    """

    features: Tensor
    sites: Sites
    ground: GroundState | None

    def __init__(
        self,
        features: Tensor,
        coords: Any = None,
        spatial_shape: Any = None,
        batch_size: int | None = None,
        ground: Any = 0.0,
        duplicates: str = "error",
        *,
        sites: Sites | None = None,
    ) -> None:
        """From features and coordinates in any order.

        Args:
            features: (n, C), floating point.
            coords: (n, 1 + D), columns [batch, spatial...], integers.
            spatial_shape: D extents, 1 <= D <= 4.
            batch_size: default: the largest batch index plus one (1 where there is no site).
            ground: a number, (C,) or an image (1 or B, C, *spatial or 1s), differentiable; or None.
            duplicates: what to do with rows at the same site: "error", "sum", "mean", "max"
                (gradients of ties are shared) or "first"; differentiable.
            sites: instead of coords, spatial_shape and batch_size: those of another tensor.

        Raises:
            TypeError: a type or dtype that cannot be meant.
            ValueError: shapes, ranges, repeated coordinates, NaN in coords or ground.
            RuntimeError: tensors on different devices.
            NotImplementedError: meta tensors.
        """
        check_duplicates(duplicates)
        if isinstance(sites, Sites):  # as dataclasses.replace does, by which FSDP rebuilds tensors
            self.__dict__.update(self._of(features, sites, None).replace(features, ground).__dict__)
            return
        check_features(features)
        shape = check_shape(spatial_shape)
        if isinstance(coords, Tensor) and coords.device != features.device and not coords.is_meta:
            raise RuntimeError(
                f"SparseTensor: coords must be on {features.device} like features, "
                f"got {coords.device}; use coords.to(features.device)"
            )
        sites, order, start = Sites.from_coords(coords, shape, batch_size)
        if features.shape[0] != coords.shape[0]:
            raise ValueError(
                f"SparseTensor: features must have one row per coordinate, {coords.shape[0]}, "
                f"got {features.shape[0]}; give both the same length"
            )
        if start is not None and order is not None:
            if duplicates == "error":
                raise ValueError(repeated(coords, order, start))
            features = merge_repeats(features, order, start, duplicates)
        elif order is not None:
            features = features[order]
        self.features = features.contiguous()
        self.sites = sites
        self.ground = make_ground(
            ground, features.shape[1], sites.batch_size, shape, features.dtype, features.device
        )
        self._drop_ground_if_full()

    @classmethod
    def _of(cls, features: Tensor, sites: Sites, ground: GroundState | None) -> SparseTensor:
        """Without checks: features contiguous, in the order of `sites`."""
        self = object.__new__(cls)
        self.features = features
        self.sites = sites
        self.ground = ground
        return self

    def _drop_ground_if_full(self) -> None:
        """No inactive site: the ground is arbitrary, and zero costs nothing."""
        if self.sites.is_full and self.ground is not None and not self.ground.is_zero:
            self.ground = self._zero(self.features, self.sites)

    @staticmethod
    def _zero(features: Tensor, sites: Sites) -> GroundState:
        shape = sites.spatial_shape
        return GroundState.zero(features.shape[1], shape, features.dtype, features.device)

    @classmethod
    def from_dense(cls, dense: Tensor, ground: Any = 0.0) -> SparseTensor:
        """Active is every site where any channel differs from the ground (a NaN does).

        Args:
            dense: (B, C, *spatial), floating point; differentiable at active sites.
            ground: as in the constructor; with None, sites that are zero in all channels are
                taken as not existing.
        """
        check_features(dense, "SparseTensor.from_dense", "dense", n_axes=True)
        shape = check_shape(tuple(dense.shape[2:]), "SparseTensor.from_dense")
        batch, channels = dense.shape[:2]
        state = make_ground(
            ground, channels, batch, shape, dense.dtype, dense.device, "SparseTensor.from_dense"
        )
        active = differs(dense.detach(), state)
        if active.numel() and bool(active.all()):
            return cls._from_full(dense, keep_none=state is None)
        coords = active.nonzero()
        features = dense.movedim(1, -1)[tuple(coords.unbind(1))]
        sites = Sites(coords.to(torch.int32).contiguous(), shape, batch, dense.device)
        return cls._of(features.contiguous(), sites, state)

    @classmethod
    def _from_full(
        cls, dense: Tensor, sites: Sites | None = None, keep_none: bool = False
    ) -> SparseTensor:
        """A saturated tensor; free where `dense` is stored channels-last."""
        shape = tuple(dense.shape[2:])
        features = dense.movedim(1, -1).reshape(-1, dense.shape[1]).contiguous()
        if sites is None:
            sites = Sites.full(dense.shape[0], shape, dense.device)
        return cls._of(features, sites, None if keep_none else cls._zero(features, sites))

    def _dense_view(self) -> Tensor:
        """(B, C, *spatial) of a saturated tensor: a channels-last view, no copy."""
        sites = self.sites
        shape = (sites.batch_size, *sites.spatial_shape, self.features.shape[1])
        return self.features.view(shape).movedim(-1, 1)

    def to_dense(self) -> Tensor:
        """(B, C, *spatial), inactive sites filled with the ground (0 where it is None)."""
        return self._saturate()._dense_view().contiguous()

    def _saturate(self) -> SparseTensor:
        """All sites active; those that were not hold the ground (0 where it is None)."""
        sites, features, ground = self.sites, self.features, self.ground
        if sites.is_full:
            return self
        if ground is None or ground.is_zero:
            image = scatter_rows(features, sites.keys, sites.n_cells)
        else:  # a new image
            image = ground.cells(sites.batch_size).index_copy_(0, sites.keys, features)
        full = Sites.full(sites.batch_size, sites.spatial_shape, sites.device)
        zero = partial(self._zero, features, full)
        return self._of(image, full, ground and remembered(ground, "saturated", (), zero))

    def replace(self, features: Tensor | None = None, ground: Any = _KEEP) -> SparseTensor:
        """Other features or another ground at the same sites.

        Args:
            features: (n_sites, C'); a C' other than C needs a ground that fits, or a zero one.
            ground: as in the constructor, or a GroundState.

        Raises:
            ValueError: shapes that do not fit.
            TypeError: features are no floating-point tensor.
        """
        new, sites = self.features if features is None else features, self.sites
        check_features(new, "SparseTensor.replace")
        if new.shape[0] != sites.n_sites:
            raise ValueError(
                f"SparseTensor.replace: features must have {sites.n_sites} rows, one per site, "
                f"got {new.shape[0]}; make a new SparseTensor for other sites"
            )
        if ground is _KEEP:
            ground = self.ground
            if ground is not None and ground.is_zero:
                ground = 0.0
            elif ground is not None and ground.dtype != new.dtype:
                ground = ground.map(lambda v: v.to(new.dtype))
        state = make_ground(
            ground,
            new.shape[1],
            sites.batch_size,
            sites.spatial_shape,
            new.dtype,
            new.device,
            "SparseTensor.replace",
        )
        out = self._of(new.contiguous(), sites, state)
        out._drop_ground_if_full()
        return out

    # -------------------------------------------------------------- what one asks of a tensor
    @property
    def coords(self) -> Tensor:
        """int32 (n_sites, 1 + D), columns [batch, spatial...]; read-only."""
        return self.sites.coords

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Extents of the grid."""
        return self.sites.spatial_shape

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.sites.batch_size

    @property
    def shape(self) -> torch.Size:
        """(B, C, *spatial)."""
        sites = self.sites
        return torch.Size((sites.batch_size, self.features.shape[1], *sites.spatial_shape))

    @property
    def saturated(self) -> bool:
        """Whether every site is active."""
        return self.sites.is_full

    @property
    def density(self) -> float:
        """Active sites as a share of all."""
        return self.sites.n_sites / max(self.sites.n_cells, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the features."""
        return self.features.dtype

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self.features.device

    @property
    def requires_grad(self) -> bool:
        """Whether features or ground take part in autograd."""
        ground = self.ground
        return self.features.requires_grad or (ground is not None and ground.requires_grad)

    @property
    def ndim(self) -> int:
        """2 + D."""
        return 2 + len(self.sites.spatial_shape)

    def dim(self) -> int:
        """2 + D."""
        return 2 + len(self.sites.spatial_shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        """`shape`, or one entry of it."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        """The batch size, as len of a dense (B, C, *spatial) tensor."""
        return self.sites.batch_size

    def __repr__(self) -> str:
        """Sites, grid, channels, density, dtype and device."""
        s = self.sites
        tail = ", ground=None" if self.ground is None else ""
        return (
            f"SparseTensor(sites={s.n_sites}, batch={s.batch_size}, spatial={s.spatial_shape}, "
            f"channels={self.features.shape[1]}, density={self.density:.2%}, "
            f"{str(self.dtype).removeprefix('torch.')}, {self.device}{tail})"
        )

    # -------------------------------------------------------------- conversions
    def map(self, f: Callable[[Tensor], Tensor], keeps_zero: bool = False) -> SparseTensor:
        """Apply an elementwise function of rows (channels in dim -1) to features and ground.

        Args:
            f: rows -> rows.
            keeps_zero: f(0) == 0, so that a zero ground stays symbolic.
        """
        features, ground = f(self.features).contiguous(), self.ground
        if ground is not None:
            changed = features.shape[1] != self.features.shape[1]
            changed = changed or features.dtype != self.features.dtype
            if self.sites.is_full or (ground.is_zero and keeps_zero):
                ground = self._zero(features, self.sites) if changed else ground
            else:
                ground = ground.map(f)
        return self._of(features, self.sites, ground)

    def to(self, *args: Any, **kwargs: Any) -> SparseTensor:
        """To another dtype or device, with the arguments of `Tensor.to`.

        Raises:
            TypeError: a dtype that is not floating point.
        """
        features = self.features.to(*args, **kwargs)
        if features is self.features:
            return self
        check_features(features, "SparseTensor.to")
        ground = self.ground
        if ground is not None:
            if ground.is_zero:
                ground = self._zero(features, self.sites)
            else:
                ground = ground.map(lambda v: v.to(features.device, features.dtype))
        return self._of(features, self.sites.to(features.device), ground)

    def cpu(self) -> SparseTensor:
        """On the CPU."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> SparseTensor:
        """On a CUDA device, the current one by default."""
        return self.to(torch.device("cuda") if device is None else torch.device(device))

    def half(self) -> SparseTensor:
        """As float16."""
        return self.to(torch.float16)

    def float(self) -> SparseTensor:
        """As float32."""
        return self.to(torch.float32)

    def double(self) -> SparseTensor:
        """As float64."""
        return self.to(torch.float64)

    def bfloat16(self) -> SparseTensor:
        """As bfloat16."""
        return self.to(torch.bfloat16)

    def detach(self) -> SparseTensor:
        """Without the history of features and ground; the same storage."""
        ground = self.ground
        if ground is not None:
            ground = ground.map(Tensor.detach, keeps_zero=True)
        return self._of(self.features.detach(), self.sites, ground)

    def requires_grad_(self, requires_grad: bool = True) -> SparseTensor:
        """Record (or not) gradients at the active sites: `x.features.grad`."""
        self.features.requires_grad_(requires_grad)
        return self

    def pin_memory(self) -> SparseTensor:
        """Features in page-locked memory."""
        return self._of(self.features.pin_memory(), self.sites, self.ground)

    def _become(self, other: SparseTensor) -> SparseTensor:
        """In place: this object gets new contents, made out of place, and aliases see them."""
        if self.shape != other.shape:
            raise ValueError(
                f"SparseTensor: an in-place operation must keep the shape {tuple(self.shape)}, "
                f"got {tuple(other.shape)}; use the out-of-place form"
            )
        self.__dict__.update(other.__dict__)
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Route torch functions to their sparse meaning."""
        handler = HANDLERS.get(func)
        if handler is None:
            raise NotImplementedError(
                f"{function_name(func)}: has no sparse meaning for a SparseTensor; "
                "call .to_dense() first"
            )
        return handler(*args, **(kwargs or {}))
