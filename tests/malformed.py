"""The table of wrong calls: what must raise, as which exception, and what its text must name.

`python malformed.py START` runs the rows from START on in one process and prints a JSON line before
and after each, so that the parent sees which one crashed. `test_malformed.py` is the parent.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import doublesparse as ds

NAN, INF = float("nan"), float("inf")
# what was got; the others are torch's own words, in front of anything of ours
SAID = ("got ", "more than 1 value", "must be Tensor, not NoneType", "divisible by groups")
EDGE = 2**31 - 1


@dataclass(frozen=True)
class Wrong:
    """One wrong call. `names`: words of the message, the operation first."""

    label: str
    call: Callable[[], object]
    error: type[Exception] | tuple[type[Exception], ...]
    names: tuple[str, ...]


def features(n: int = 2, c: int = 3, **options) -> torch.Tensor:
    return torch.ones(n, c, **options)


def coords(n: int = 2, n_axes: int = 2) -> torch.Tensor:
    rows = torch.zeros(n, 1 + n_axes, dtype=torch.int64)
    rows[:, -1] = torch.arange(n)
    return rows


def tensor(n_axes: int = 2, c: int = 3, extent: int = 6, **options):
    return ds.SparseTensor(features(c=c), coords(n_axes=n_axes), (extent,) * n_axes, 1, **options)


def constructor(**changes) -> Callable[[], object]:
    given = dict(features=features(), coords=coords(), spatial_shape=(6, 6), batch_size=1) | changes
    return lambda: ds.SparseTensor(**given)


def with_row(*row) -> torch.Tensor:
    kind = torch.float64 if any(isinstance(v, float) for v in row) else torch.int64
    return torch.cat([coords().to(kind), torch.tensor([row], dtype=kind)])


# ------------------------------------------------------------------ tensors
def constructors() -> Iterator[Wrong]:
    three = features(3)
    any_type = (TypeError, NotImplementedError)
    rows = [
        ("features None", dict(features=None), TypeError, "features"),
        ("features a list", dict(features=[[1.0]]), TypeError, "features"),
        ("features integers", dict(features=features().long()), any_type, "features"),
        ("features bool", dict(features=features().bool()), any_type, "features"),
        ("features complex", dict(features=features().cfloat()), any_type, "features"),
        ("features 1-D", dict(features=torch.ones(2)), ValueError, "features"),
        ("features 3-D", dict(features=torch.ones(2, 3, 1)), ValueError, "features"),
        ("features meta", dict(features=features(device="meta")), (RuntimeError,), "features"),
        ("features too few", dict(features=features(1)), ValueError, "features"),
        ("features sparse layout", dict(features=features().to_sparse()), any_type, "features"),
        ("coords None", dict(coords=None), TypeError, "coords"),
        ("coords a list", dict(coords=[[0, 0, 0]]), TypeError, "coords"),
        ("coords 1-D", dict(coords=torch.zeros(2, dtype=torch.int64)), ValueError, "coords"),
        ("coords columns", dict(coords=coords(n_axes=3)), ValueError, "coords"),
        ("coords bool", dict(coords=coords().bool()), TypeError, "coords"),
        ("coords complex", dict(coords=coords().cfloat()), any_type, "coords"),
        ("coords meta", dict(coords=coords().to("meta")), (RuntimeError,), "coords"),
        ("coords NaN", dict(features=three, coords=with_row(0.0, NAN, 1.0)), ValueError, "coords"),
        ("coords inf", dict(features=three, coords=with_row(0.0, INF, 1.0)), ValueError, "coords"),
        (
            "coords 1e30",
            dict(features=three, coords=with_row(0.0, 1e30, 1.0)),
            ValueError,
            "coords",
        ),
        ("coords 0.5", dict(features=three, coords=with_row(0.0, 0.5, 1.0)), ValueError, "coords"),
        ("spatial_shape None", dict(spatial_shape=None), TypeError, "spatial_shape"),
        ("spatial_shape int", dict(spatial_shape=6), TypeError, "spatial_shape"),
        ("spatial_shape text", dict(spatial_shape="66"), TypeError, "spatial_shape"),
        ("spatial_shape floats", dict(spatial_shape=(6.5, 6)), TypeError, "spatial_shape"),
        ("spatial_shape zero", dict(spatial_shape=(0, 6)), ValueError, "(0, 6)"),
        ("spatial_shape negative", dict(spatial_shape=(6, -1)), ValueError, "(6, -1)"),
        ("spatial_shape empty", dict(spatial_shape=()), ValueError, "spatial_shape"),
        ("spatial_shape 5-D", dict(spatial_shape=(2,) * 5), ValueError, "spatial_shape"),
        ("spatial_shape 2^31", dict(spatial_shape=(2**31, 2)), ValueError, "2^31"),
        ("batch_size negative", dict(batch_size=-1), ValueError, "batch_size"),
        ("batch_size float", dict(batch_size=1.5), TypeError, "batch_size"),
        ("batch_size text", dict(batch_size="1"), TypeError, "batch_size"),
        ("batch_size 2^40", dict(batch_size=2**40), ValueError, "batch_size"),
        ("ground NaN", dict(ground=NAN), ValueError, "ground"),
        ("ground inf", dict(ground=-INF), ValueError, "ground"),
        ("ground tensor inf", dict(ground=torch.tensor([1, INF, 0])), ValueError, "ground"),
        ("ground text", dict(ground="zero"), TypeError, "ground"),
        ("ground channels", dict(ground=torch.zeros(4)), ValueError, "ground"),
        ("ground 2-D", dict(ground=torch.zeros(3, 3)), ValueError, "ground"),
        ("ground image size", dict(ground=torch.zeros(1, 3, 5, 6)), ValueError, "ground"),
        ("ground image batch", dict(ground=torch.zeros(2, 3, 6, 6)), ValueError, "ground"),
        ("ground meta", dict(ground=torch.zeros(3, device="meta")), (RuntimeError,), "ground"),
        ("ground complex", dict(ground=1j), TypeError, "ground"),
        ("duplicates unknown", dict(duplicates="last"), ValueError, "duplicates"),
        ("duplicates None", dict(duplicates=None), (ValueError, TypeError), "duplicates"),
    ]
    for label, changes, error, name in rows:
        yield Wrong(f"SparseTensor {label}", constructor(**changes), error, ("SparseTensor", name))
    for row in ((0, -1, 0), (-1, 0, 0), (0, 6, 0), (0, 0, 6), (1, 0, 0), (0, 2**40, 0)):
        call = constructor(features=three, coords=with_row(*row))
        names = ("SparseTensor", str(list(row)))
        yield Wrong(f"SparseTensor site {row}", call, ValueError, names)
    call = constructor(features=three, coords=with_row(0, 0, 1))
    yield Wrong("SparseTensor twice", call, ValueError, ("SparseTensor", "[0, 0, 1]"))
    for shape in ((EDGE, EDGE, 3), (EDGE,) * 4):
        options = dict(coords=coords(n_axes=len(shape)), spatial_shape=shape)
        yield Wrong(
            f"product {shape}", constructor(**options), ValueError, ("SparseTensor", "2^63")
        )


def conversions() -> Iterator[Wrong]:
    where = "SparseTensor.from_dense"
    from_dense = ds.SparseTensor.from_dense
    image = torch.zeros(1, 3, 6, 6)
    rows = [
        ("None", (None,), TypeError, "dense"),
        ("integers", (image.long(),), (TypeError, NotImplementedError), "dense"),
        ("rank 2", (image[0, 0],), ValueError, "dense"),
        ("rank 7", (image[..., None, None, None],), ValueError, "dense"),
        ("meta", (image.to("meta"),), (RuntimeError,), "dense"),
        ("ground NaN", (image, NAN), ValueError, "ground"),
        ("ground channels", (image, torch.zeros(2)), ValueError, "ground"),
        ("ground text", (image, "x"), TypeError, "ground"),
    ]
    for label, args, error, name in rows:
        call = lambda args=args: from_dense(*args)  # noqa: E731
        yield Wrong(f"from_dense {label}", call, error, (where, name))
    x = tensor()
    rows = [
        ("rows", lambda: x.replace(features=features(5)), ValueError, ("replace", "features")),
        ("rank", lambda: x.replace(features=torch.ones(2)), ValueError, ("replace", "features")),
        ("type", lambda: x.replace(features=3), TypeError, ("replace", "features")),
        ("ground", lambda: x.replace(ground=torch.ones(7)), ValueError, ("replace", "ground")),
        ("ground inf", lambda: x.replace(ground=INF), ValueError, ("replace", "ground")),
        ("to int", lambda: x.to(torch.int32), (TypeError, NotImplementedError), ("to",)),
        ("collate None", lambda: ds.collate(None), TypeError, ("collate",)),
        ("collate empty", lambda: ds.collate([]), ValueError, ("collate",)),
        ("collate mixed", lambda: ds.collate([x, image]), TypeError, ("collate",)),
        ("collate shapes", lambda: ds.collate([x, tensor(extent=7)]), ValueError, ("collate",)),
        ("collate channels", lambda: ds.collate([x, tensor(c=2)]), ValueError, ("collate",)),
        ("collate axes", lambda: ds.collate([x, tensor(3)]), ValueError, ("collate",)),
        ("add shapes", lambda: x + tensor(extent=7), ValueError, ("add",)),
        ("crossover word", lambda: ds.set_crossover("fast"), ValueError, ("set_crossover",)),
        ("crossover 2", lambda: ds.set_crossover(2.0), ValueError, ("set_crossover",)),
        ("crossover list", lambda: ds.set_crossover([]), TypeError, ("set_crossover",)),
    ]
    for label, call, error, names in rows:
        yield Wrong(label, call, error, names)


# ------------------------------------------------------------------ operators
def operator_rows(name: str, call: Callable, weight: torch.Tensor, x) -> Iterator[tuple]:
    """Wrong arguments that every convolution refuses; call(x, weight, bias, **options)."""
    w, n = weight, x.dim() - 2
    any_type = (TypeError, NotImplementedError)
    yield "x None", lambda: call(None, w), TypeError, ()
    yield "x a list", lambda: call([1.0], w), TypeError, ()
    yield "weight None", lambda: call(x, None), TypeError, ("weight",)
    yield "weight a list", lambda: call(x, [1.0]), TypeError, ("weight",)
    yield "weight sparse", lambda: call(x, x), (TypeError, NotImplementedError), ("weight",)
    yield "weight rank", lambda: call(x, w[0]), ValueError, ("weight",)
    narrow = w[:2] if "transpose" in name else w[:, :2]
    yield "weight channels", lambda: call(x, narrow), ValueError, ("weight",)
    yield "weight dtype", lambda: call(x, w.double()), any_type, ("weight",)
    yield "weight integers", lambda: call(x, w.long()), any_type, ("weight",)
    yield "weight meta", lambda: call(x, w.to("meta")), (RuntimeError,), ("weight",)
    yield "weight no tap", lambda: call(x, w[..., :0]), ValueError, ("kernel_size",)
    yield "bias length", lambda: call(x, w, torch.ones(7)), ValueError, ("bias",)
    yield "bias rank", lambda: call(x, w, torch.ones(3, 1)), ValueError, ("bias",)
    yield "bias dtype", lambda: call(x, w, torch.ones(3).double()), any_type, ("bias",)
    yield "bias a number", lambda: call(x, w, 1.0), TypeError, ("bias",)
    yield "dilation 0", lambda: call(x, w, dilation=0), ValueError, ("dilation",)
    yield "dilation negative", lambda: call(x, w, dilation=-1), ValueError, ("dilation",)
    yield "dilation float", lambda: call(x, w, dilation=1.5), TypeError, ("dilation",)
    yield "dilation length", lambda: call(x, w, dilation=(1,) * (n + 1)), ValueError, ("dilation",)
    yield "groups 0", lambda: call(x, w, groups=0), ValueError, ("groups",)
    yield "groups 2", lambda: call(x, w, groups=2), ValueError, ("groups",)
    yield "groups negative", lambda: call(x, w, groups=-3), ValueError, ("groups",)
    yield "groups float", lambda: call(x, w, groups=1.0), TypeError, ("groups",)
    yield "axes", lambda: call(tensor(n + 1 if n < 4 else 1), w), ValueError, ()
    if name.startswith("submanifold"):
        return
    yield "stride 0", lambda: call(x, w, stride=0), ValueError, ("stride",)
    yield "stride negative", lambda: call(x, w, stride=(-1,) * n), ValueError, ("stride",)
    yield "stride text", lambda: call(x, w, stride="2"), TypeError, ("stride",)
    yield "stride None", lambda: call(x, w, stride=None), TypeError, ("stride",)
    yield "stride length", lambda: call(x, w, stride=(1,) * (n + 1)), ValueError, ("stride",)
    yield "padding negative", lambda: call(x, w, padding=-1), ValueError, ("padding",)
    yield "padding float", lambda: call(x, w, padding=0.5), TypeError, ("padding",)
    yield "padding huge", lambda: call(x, w, padding=2**40), ValueError, ()
    yield "dilation huge", lambda: call(x, w, dilation=2**62), ValueError, ()


def convolutions() -> Iterator[Wrong]:
    for n in (1, 2, 3, 4):
        x, w = tensor(n), torch.ones(3, 3, *[3] * n)
        kinds = [(f"conv{n}d", (1,) * n), (f"submanifold_conv{n}d", (1,) * n)]
        kinds += [(f"conv_transpose{n}d", (1,) * n)] if n < 4 else []
        for name, _ in kinds:
            call = getattr(ds.functional, name)
            for label, run, error, names in operator_rows(name, call, w, x):
                yield Wrong(f"{name} {label}", run, error, (name, *names))
        conv, sub = (getattr(ds.functional, k) for k, _ in kinds[:2])
        big = torch.ones(3, 3, *[9] * n) if n < 4 else torch.ones(3, 3, 9, 1, 1, 1)
        name = f"conv{n}d"
        rows = [
            ("kernel too large", lambda conv=conv, x=x, big=big: conv(x, big), ValueError, name),
            (
                "padding word",
                lambda conv=conv, x=x, w=w: conv(x, w, padding="full"),
                ValueError,
                name,
            ),
            (
                "same with a stride",
                lambda conv=conv, x=x, w=w: conv(x, w, stride=2, padding="same"),
                ValueError,
                name,
            ),
            (
                "even kernel",
                lambda sub=sub, x=x, w=w: sub(x, w[..., :2]),
                ValueError,
                f"submanifold_{name}",
            ),
            (
                "ground",
                lambda sub=sub, w=w, n=n: sub(tensor(n, ground=1.0), w),
                ValueError,
                f"submanifold_{name}",
            ),
            (
                "ground word",
                lambda sub=sub, x=x, w=w: sub(x, w, ground="keep"),
                ValueError,
                f"submanifold_{name}",
            ),
        ]
        for label, call, error, operation in rows:
            yield Wrong(f"{operation} {label}", call, error, (operation,))
    x, w = tensor(), torch.ones(3, 3, 3, 3)
    transpose = ds.functional.conv_transpose2d
    rows = [
        ("output_padding 1", dict(output_padding=1), "output_padding"),
        ("output_padding -1", dict(output_padding=-1), "output_padding"),
        ("output extent", dict(padding=9), "padding"),
        ("output overflow", dict(stride=2**30), ""),
    ]
    for label, options, word in rows:
        call = lambda options=options: transpose(x, w, **options)  # noqa: E731
        yield Wrong(f"conv_transpose2d {label}", call, ValueError, ("conv_transpose2d", word))


def pools() -> Iterator[Wrong]:
    any_type = (TypeError, NotImplementedError)
    for name in ("max_pool", "avg_pool"):
        for n in (1, 2, 3):
            x, call, where = tensor(n), getattr(ds.functional, f"{name}{n}d"), f"{name}{n}d"
            rows = [
                ("x None", (None, 2), {}, TypeError, ""),
                ("axes", (tensor(n % 3 + 1), 2), {}, ValueError, ""),
                ("kernel 0", (x, 0), {}, ValueError, "kernel_size"),
                ("kernel negative", (x, (-1,) * n), {}, ValueError, "kernel_size"),
                ("kernel None", (x, None), {}, TypeError, "kernel_size"),
                ("kernel float", (x, 2.0), {}, TypeError, "kernel_size"),
                ("kernel length", (x, (2,) * (n + 1)), {}, ValueError, "kernel_size"),
                ("kernel too large", (x, 9), {}, ValueError, ""),
                ("stride 0", (x, 2, 0), {}, ValueError, "stride"),
                ("stride float", (x, 2, 1.5), {}, TypeError, "stride"),
                ("padding more than half", (x, 2, 1, 2), {}, ValueError, "padding"),
                ("padding negative", (x, 2, 1, -1), {}, ValueError, "padding"),
                ("padding text", (x, 2, 1, "same"), {}, any_type, "padding"),
            ]
            if name == "max_pool":
                rows += [("dilation 0", (x, 2), dict(dilation=0), ValueError, "dilation")]
            elif n > 1:
                zero = dict(divisor_override=0)
                rows += [("divisor 0", (x, 2), zero, ValueError, "divisor_override")]
            for label, args, options, error, word in rows:
                run = lambda c=call, a=args, o=options: c(*a, **o)  # noqa: E731
                yield Wrong(f"{where} {label}", run, error, (where, word))
    x = tensor()
    for name in ("global_max_pool", "global_avg_pool"):
        call = getattr(ds.functional, name)
        yield Wrong(f"{name} None", lambda c=call: c(None), TypeError, (name,))
    rows = [
        ("size 0", lambda: F.adaptive_avg_pool2d(x, 0)),
        ("size negative", lambda: F.adaptive_avg_pool2d(x, (2, -1))),
        ("size length", lambda: F.adaptive_avg_pool2d(x, (2, 2, 2))),
    ]
    for label, call in rows:
        yield Wrong(f"adaptive {label}", call, (ValueError, TypeError), ("adaptive_avg_pool2d",))


def norms_and_moves() -> Iterator[Wrong]:
    x, one = tensor(), torch.ones(1)
    norm = ds.functional.batch_norm
    three = torch.ones(3)
    pixel = ds.SparseTensor(features(1), coords(1), (1, 1), 1)
    rows = [
        ("batch_norm None", lambda: norm(None, three, three), TypeError, "batch_norm"),
        ("batch_norm mean length", lambda: norm(x, one, three), ValueError, "batch_norm"),
        ("batch_norm var length", lambda: norm(x, three, one), ValueError, "batch_norm"),
        ("batch_norm weight", lambda: norm(x, three, three, one), ValueError, "batch_norm"),
        ("batch_norm bias", lambda: norm(x, three, three, three, one), ValueError, "batch_norm"),
        ("batch_norm no statistics", lambda: norm(x, None, None), ValueError, "batch_norm"),
        (
            "batch_norm one value",
            lambda: norm(pixel, None, None, training=True),
            ValueError,
            "more than 1 value",
        ),
        ("group_norm groups", lambda: F.group_norm(x, 2), ValueError, "group_norm"),
        ("group_norm groups 0", lambda: F.group_norm(x, 0), ValueError, "group_norm"),
        ("group_norm weight", lambda: F.group_norm(x, 3, one), ValueError, "group_norm"),
        ("pad channels", lambda: F.pad(x, (0, 0, 0, 0, 1, 1)), NotImplementedError, "pad"),
        ("pad odd", lambda: F.pad(x, (1, 1, 1)), ValueError, "pad"),
        ("pad crops all", lambda: F.pad(x, (-3, -3)), ValueError, "pad"),
        ("pad reflect far", lambda: F.pad(x, (6, 6, 6, 6), "reflect"), ValueError, "pad"),
        ("pad mode", lambda: F.pad(x, (1, 1), "mirror"), (ValueError, NotImplementedError), "pad"),
        ("interpolate mode", lambda: F.interpolate(x, 3, mode="lanczos"), NotImplementedError, ""),
        ("interpolate size 0", lambda: F.interpolate(x, (0, 3)), ValueError, "interpolate"),
        ("interpolate nothing", lambda: F.interpolate(x), ValueError, "interpolate"),
        ("dropout p", lambda: F.dropout(x, 1.5), ValueError, "dropout"),
        ("dropout2d p", lambda: F.dropout2d(x, -0.5), ValueError, "dropout"),
        ("mean one axis", lambda: x.mean(2), NotImplementedError, "mean"),
        ("view", lambda: x.view(1, 3, 36), NotImplementedError, "view"),
        ("view sizes", lambda: x.view(5, -1), (ValueError, NotImplementedError), "view"),
        ("cat dim 0", lambda: torch.cat([x, x]), NotImplementedError, "cat"),
        ("cat empty", lambda: torch.cat([x, tensor(extent=7)], 1), ValueError, "cat"),
        ("add an image", lambda: x + torch.ones(1, 3, 6, 6), NotImplementedError, "add"),
        ("add wrong channels", lambda: x + torch.ones(1, 2, 1, 1), ValueError, "add"),
    ]
    for label, call, error, word in rows:
        yield Wrong(label, call, error, (word,))


def modules() -> Iterator[Wrong]:
    nets = ds.nn
    x = tensor()
    bad = (ValueError, TypeError)
    rows = [
        ("SparseConv2d groups", lambda: nets.SparseConv2d(3, 4, 3, groups=2), bad, ""),
        ("SparseConv2d stride 0", lambda: nets.SparseConv2d(3, 4, 3, stride=0)(x), bad, "stride"),
        ("SparseConv2d kernel 0", lambda: nets.SparseConv2d(3, 4, 0)(x), bad, "kernel_size"),
        ("SparseConv2d None", lambda: nets.SparseConv2d(3, 4, 3)(None), TypeError, ""),
        ("SparseConv2d channels", lambda: nets.SparseConv2d(4, 4, 3)(x), ValueError, "channels"),
        ("SparseConv3d axes", lambda: nets.SparseConv3d(3, 4, 3)(x), ValueError, ""),
        (
            "SparseConv2d dtype",
            lambda: nets.SparseConv2d(3, 4, 3)(x.double()),
            (TypeError, NotImplementedError),
            "float",
        ),
        (
            "SparseConv2d meta",
            lambda: nets.SparseConv2d(3, 4, 3, device="meta")(x),
            RuntimeError,
            "meta",
        ),
        ("SubmanifoldConv2d even", lambda: nets.SubmanifoldConv2d(3, 4, 2), ValueError, "odd"),
        (
            "SubmanifoldConv2d ground",
            lambda: nets.SubmanifoldConv2d(3, 4, 3)(tensor(ground=2.0)),
            ValueError,
            "ground",
        ),
        (
            "SubmanifoldConv2d ground word",
            lambda: nets.SubmanifoldConv2d(3, 4, 3, ground="keep"),
            ValueError,
            "ground",
        ),
        (
            "SparseInverseConv2d like None",
            lambda: nets.SparseInverseConv2d(3, 4, 2, stride=2)(x, like=None),
            TypeError,
            "like",
        ),
        (
            "SparseInverseConv2d like axes",
            lambda: nets.SparseInverseConv2d(3, 4, 2, stride=2)(x, like=tensor(3)),
            ValueError,
            "like",
        ),
        (
            "SparseInverseConv2d like shape",
            lambda: nets.SparseInverseConv2d(3, 4, 2, stride=2)(x, like=tensor(extent=50)),
            ValueError,
            "like",
        ),
        ("SparseMaxPool2d", lambda: nets.SparseMaxPool2d(0)(x), ValueError, "kernel_size"),
        ("SparseBatchNorm", lambda: nets.SparseBatchNorm(4)(x), ValueError, "batch_norm"),
        ("ToSparse ground", lambda: nets.ToSparse(ground=NAN)(torch.zeros(1, 3, 6, 6)), bad, ""),
        ("ToSparse None", lambda: nets.ToSparse()(None), TypeError, ""),
        ("ToDense None", lambda: nets.ToDense()(None), TypeError, ""),
        ("convert None", lambda: nets.convert(None), TypeError, "convert"),
    ]
    for label, call, error, word in rows:
        yield Wrong(label, call, error, (word,))


def rulebooks() -> Iterator[Wrong]:
    sites = tensor().sites
    build, geometry = ds.build_rulebook, ds.Geometry
    both = (ValueError, TypeError)
    rows = [
        ("kernel 0", lambda: geometry((0, 3)), ValueError, "Geometry"),
        ("kernel None", lambda: geometry(None), TypeError, "Geometry"),
        ("kernel float", lambda: geometry((1.5, 3)), TypeError, "Geometry"),
        ("stride 0", lambda: geometry((3, 3), 0), ValueError, "Geometry"),
        ("dilation 0", lambda: geometry((3, 3), dilation=0), ValueError, "Geometry"),
        ("padding negative", lambda: geometry((3, 3), padding=-1), ValueError, "Geometry"),
        ("lengths", lambda: geometry((3, 3), (1, 1, 1)), ValueError, "Geometry"),
        ("no sites", lambda: build(None, geometry((3, 3)), "conv"), TypeError, "build_rulebook"),
        ("no geometry", lambda: build(sites, None, "conv"), TypeError, "build_rulebook"),
        ("kind", lambda: build(sites, geometry((3, 3)), "inverse"), ValueError, "build_rulebook"),
        ("axes", lambda: build(sites, geometry((3,) * 3), "conv"), ValueError, "build_rulebook"),
        ("too large", lambda: build(sites, geometry((9, 9)), "conv"), ValueError, "build_rulebook"),
        (
            "even submanifold",
            lambda: build(sites, geometry((2, 2)), "submanifold"),
            ValueError,
            "build_rulebook",
        ),
        (
            "strided submanifold",
            lambda: build(sites, geometry((3, 3), 2, 1), "submanifold"),
            ValueError,
            "build_rulebook",
        ),
        (
            "transposed overflow",
            lambda: build(sites, geometry((3, 3), 2**30), "transposed"),
            both,
            "build_rulebook",
        ),
    ]
    for label, call, error, word in rows:
        yield Wrong(f"rulebook {label}", call, error, (word,))


TABLE = [
    row
    for part in (
        constructors,
        conversions,
        convolutions,
        pools,
        norms_and_moves,
        modules,
        rulebooks,
    )
    for row in part()
]


def verdict(row: Wrong) -> str | None:
    """What is wrong with the package's answer to a wrong call; None if nothing is."""
    try:
        out = row.call()
    except row.error as error:
        text = str(error)
        if not all(name in text for name in row.names):
            return f"the text does not name {row.names}: {text}"
        refusal = isinstance(error, NotImplementedError) and ".to_dense()" in text
        if not refusal and not any(words in text for words in SAID):
            return f"the text does not say what was got: {text}"
        return None
    except Exception as error:
        return f"{type(error).__name__} instead of {row.error}: {error}"
    return f"accepted: {out!r}"[:300]


def main(start: int) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    for number in range(start, len(TABLE)):
        print(json.dumps({"begin": number}), flush=True)
        print(json.dumps({"end": number, "verdict": verdict(TABLE[number])}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
