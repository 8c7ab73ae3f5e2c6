"""Models with pruned weights: what is swapped, what is not, and that everything else goes on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.nn.utils as utils

import doublesparse as ds


class Net(nn.Module):
    """A convolution with groups, a norm, a shared layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Linear(8 * 9, 12)
        self.again = nn.Linear(12, 12)
        self.alias = self.again
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(1)
        return self.head(self.alias(self.again(self.body(x)).relu()).relu())


LAYERS = ["conv", "body", "again", "head"]


def step(net, optimizer, x):
    optimizer.zero_grad()
    net(x).pow(2).mean().backward()
    optimizer.step()


def weight_of(net, name):
    return net.get_submodule(name).weight


def test_the_same_objects_go_on():
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x = torch.randn(4, 2, 5, 5)
    calls = []
    net.body.register_forward_hook(lambda *args: calls.append(1))
    step(net, optimizer, x)
    before = dict(net.named_modules()), dict(net.named_parameters()), set(net.state_dict())
    dense = {name: weight_of(net, name).detach().clone() for name in LAYERS}
    assert ds.prune.sparsify_(net, 0.75) is net
    after = dict(net.named_modules()), dict(net.named_parameters())
    assert all(before[i][name] is after[i][name] for i in (0, 1) for name in before[i])
    assert set(net.state_dict()) == before[2] | {f"{name}.mask" for name in (*LAYERS, "alias")}
    assert type(net.conv) is ds.nn.MaskedConv2d and type(net.head) is ds.nn.MaskedLinear
    assert list(ds.prune.masks(net)) == LAYERS and ds.prune.skipped(net) == {}
    for name, mask in ds.prune.masks(net).items():
        want = ds.prune.magnitude_mask(dense[name], ds.Unstructured(), 0.75)
        assert torch.equal(mask, want) and mask is net.get_submodule(name).mask
        assert torch.equal(weight_of(net, name), torch.where(want, dense[name], 0.0))
        for state in optimizer.state[weight_of(net, name)].values():
            assert state.dim() == 0 or state.any()
    step(net, optimizer, x)
    assert len(calls) == 2
    for name, mask in ds.prune.masks(net).items():
        for value in (weight_of(net, name), *optimizer.state[weight_of(net, name)].values()):
            assert value.dim() == 0 or not value.detach()[~mask].any()
    assert ds.prune.densify_(net) is net
    assert [type(net.get_submodule(n)) for n in LAYERS] == [nn.Conv2d] + [nn.Linear] * 3
    assert set(net.state_dict()) == before[2] and not ds.prune.masks(net)
    assert not set(vars(net.body)) - set(vars(nn.Linear(1, 1)))
    assert (net.body.weight == 0).float().mean() == 0.75
    step(net, optimizer, x)  # all are free again
    assert (net.body.weight == 0).float().mean() < 0.7


def test_the_answer_is_that_of_the_masked_dense_network():
    net = Net().eval()
    dense = copy.deepcopy(net)
    ds.prune.sparsify_(net, 0.6, ds.Block(2, 1))
    for name, mask in ds.prune.masks(net).items():
        with torch.no_grad():
            weight_of(dense, name).mul_(mask)
    x = torch.randn(3, 2, 5, 5)
    assert torch.allclose(net(x), dense(x), atol=1e-6)


@pytest.mark.parametrize("pattern", [ds.Unstructured(), ds.Block(4, 1)], ids=str)
def test_global_scope(pattern):
    net = Net()
    with torch.no_grad():
        net.body.weight.mul_(10.0)
    dense = {name: weight_of(net, name).detach().clone() for name in LAYERS}
    ds.prune.sparsify_(net, 0.5, pattern, scope="global")
    masks = ds.prune.masks(net)
    kept = sum(int(m.sum()) for m in masks.values())
    assert kept == round(0.5 * sum(m.numel() for m in masks.values()))
    assert masks["body"].float().mean() > 0.6
    if isinstance(pattern, ds.Unstructured):
        flat = torch.cat([dense[n].flatten() for n in LAYERS]).abs()
        want = flat >= flat.sort(descending=True).values[kept - 1]
        assert torch.equal(torch.cat([masks[n].flatten() for n in LAYERS]), want)


def test_selection_and_shares():
    net = ds.prune.sparsify_(Net(), 0.5, select=lambda name, module: isinstance(module, nn.Conv2d))
    assert list(ds.prune.masks(net)) == ["conv"]
    ds.prune.sparsify_(net, {"conv": 0.75, "head": 0.25})
    assert {n: float(m.float().mean()) for n, m in ds.prune.masks(net).items()} == {
        "conv": 0.25,
        "head": 0.75,
    }
    ds.prune.sparsify_(net, pattern=ds.NM(1, 4), select=lambda name, module: name == "body")
    assert net.body.pattern == ds.NM(1, 4) and net.head.pattern == ds.Unstructured()
    ds.prune.densify_(net, select=lambda name, module: name == "body")
    assert list(ds.prune.masks(net)) == ["conv", "head"] and type(net.body) is nn.Linear
    assert ds.prune.sparsify_(nn.Sequential(), 0.5, scope="global") is not None


def test_again_with_other_sparsities():
    net = ds.prune.sparsify_(Net(), 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step(net, optimizer, torch.randn(4, 2, 5, 5))
    old = {n: m.clone() for n, m in ds.prune.masks(net).items()}
    ds.prune.sparsify_(net, 0.9, optimizer=optimizer)
    for name, mask in ds.prune.masks(net).items():
        assert int(mask.sum()) == round((1 - 0.9) * mask.numel())
        assert not (mask & ~old[name]).any(), "a pruned weight came back while the mask shrank"
        momentum = optimizer.state[weight_of(net, name)]["momentum_buffer"]
        assert not momentum[old[name] & ~mask].any()
    ds.prune.sparsify_(net, 0.0)
    assert all(m.all() for m in ds.prune.masks(net).values())


def test_the_model_itself_is_a_layer():
    layer = nn.Linear(4, 4)
    assert ds.prune.sparsify_(layer, 0.5) is layer
    assert isinstance(layer, ds.nn.MaskedLinear) and list(ds.prune.masks(layer)) == [""]


# ------------------------------------------------------------------ what is left alone
class Subclass(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def tied() -> nn.Module:
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    return net


def test_what_is_skipped_and_why():
    weight_norm = nn.Linear(4, 4)
    with pytest.warns(FutureWarning):
        utils.weight_norm(weight_norm)
    net = nn.ModuleDict(
        dict(
            attention=nn.MultiheadAttention(8, 2),
            encoder=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            decoder=nn.TransformerDecoderLayer(8, 2, 16),
            subclass=Subclass(4, 4),
            parametrized=utils.parametrizations.orthogonal(nn.Linear(4, 4)),
            hooked=weight_norm,
            tied=tied(),
            transposed=nn.ConvTranspose2d(2, 2, 3),
            recurrent=nn.LSTM(4, 4),
            lazy=nn.LazyLinear(4),
            norm=nn.LayerNorm(4),
            plain=nn.Linear(4, 4),
        )
    )
    kinds = {name: type(module) for name, module in net.named_modules()}
    reasons = ds.prune.skipped(net)
    for name, words in {
        "attention": "MultiheadAttention keeps its weights",
        "attention.out_proj": "MultiheadAttention reads its weight",
        "encoder.linear1": "TransformerEncoderLayer reads",
        "encoder.linear2": "TransformerEncoderLayer reads",
        "encoder.self_attn.out_proj": "MultiheadAttention reads",
        "subclass": "Subclass has no masked form",
        "parametrized": "parametrized",
        "hooked": "computed by a hook",
        "tied.0": "Embedding has no masked form",
        "tied.1": "tied to another",
        "transposed": "ConvTranspose2d has no masked form",
        "recurrent": "LSTM has no masked form",
        "lazy": "not known before its first call",
    }.items():
        assert words in reasons.pop(name), name
    rest = {"encoder.self_attn", "decoder.self_attn", "decoder.multihead_attn"}
    rest |= {"decoder.self_attn.out_proj", "decoder.multihead_attn.out_proj"}
    assert set(reasons) == rest
    ds.prune.sparsify_(net, 0.5)
    assert set(ds.prune.masks(net)) == {"decoder.linear1", "decoder.linear2", "tied.2", "plain"}
    changed = {n for n, m in net.named_modules() if type(m) is not kinds[n]}
    assert changed == set(ds.prune.masks(net))
    x = torch.randn(2, 3, 8)
    assert net["encoder"](x).shape == x.shape and net["decoder"](x, x).shape == x.shape


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda net: ds.prune.sparsify_(net), ValueError, "sparsity must be given"),
        (lambda net: ds.prune.sparsify_(net, 1.01), ValueError, r"sparsify_: sparsity must lie"),
        (lambda net: ds.prune.sparsify_(net, "0.5"), TypeError, "sparsity must be a number"),
        (lambda net: ds.prune.sparsify_(net, 0.5, scope="net"), ValueError, "scope must be"),
        (lambda net: ds.prune.sparsify_(net, 0.5, ds.NM), TypeError, "pattern must be"),
        (lambda net: ds.prune.sparsify_(net, 0.9, ds.NM(2, 4)), ValueError, "agree"),
        (lambda net: ds.prune.sparsify_(net, 0.5, select="conv"), TypeError, "select must be"),
        (lambda net: ds.prune.sparsify_([net], 0.5), TypeError, "model must be an nn.Module"),
        (lambda net: ds.prune.sparsify_(net, {"tail": 0.5}), ValueError, "got 'tail'"),
        (lambda net: ds.prune.sparsify_(net, {"norm": 0.5}), ValueError, "got 'norm'"),
        (lambda net: ds.prune.sparsify_(net, {"conv": 2}), ValueError, "must lie in"),
        (
            lambda net: ds.prune.sparsify_(net, {"conv": 0.5}, scope="global"),
            ValueError,
            "must be one number",
        ),
        (lambda net: ds.prune.masks(None), TypeError, "masks: model"),
        (lambda net: ds.prune.skipped(None), TypeError, "skipped: model"),
        (lambda net: ds.prune.densify_(None), TypeError, "densify_: model"),
        (lambda net: ds.prune.from_torch_prune_(None), TypeError, "from_torch_prune_: model"),
    ],
)
def test_wrong_arguments_change_nothing(call, error, words):
    net = Net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=words):
        call(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not ds.prune.masks(net)


def test_nan_weights_and_dead_layers():
    net = Net().double()
    with torch.no_grad():
        net.body.weight[:6] = torch.nan
        net.head.weight.zero_()
    ds.prune.sparsify_(net, 0.5)
    assert not net.body.weight.isnan().any() and not net.body.mask[:6].any()
    assert net.head.mask[:2].all() and not net.head.mask[2:].any()
    ds.prune.sparsify_(net, 1.0)
    assert not any(m.any() for m in ds.prune.masks(net).values())
    out = net(torch.randn(2, 2, 5, 5).double())
    assert torch.equal(out, net.head.bias.detach().expand(2, 4))


# ------------------------------------------------------------------ torch's own pruning
def test_masks_made_by_torch():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(4, 2, 5, 5)
    order = list(net.state_dict())
    originals = {name: weight_of(net, name) for name in LAYERS}
    utils.prune.l1_unstructured(net.conv, "weight", 0.5)
    utils.prune.ln_structured(net.body, "weight", 0.5, n=2, dim=0)
    utils.prune.random_unstructured(net.body, "weight", 0.25)  # a container of two masks
    utils.prune.random_unstructured(net.head, "weight", 0.25)
    utils.prune.random_unstructured(net.head, "bias", 0.25)
    step(net, optimizer, x)
    wanted = {n: net.get_submodule(n).weight_mask.bool() for n in ("conv", "body", "head")}
    net.eval()
    want = net(x)
    assert ds.prune.from_torch_prune_(net) is net
    torch.testing.assert_close(net(x), want)  # perhaps by other kernels
    masks = ds.prune.masks(net)
    assert set(masks) == set(wanted) and type(net.again) is nn.Linear
    for name, mask in wanted.items():
        assert torch.equal(masks[name], mask)
        assert weight_of(net, name) is originals[name]
        assert not net.get_submodule(name)._forward_pre_hooks
    assert (net.head.bias == 0).sum() == 1
    ds.prune.densify_(net)
    assert [k for k in net.state_dict() if not k.startswith("head")] == order[:-2]
    net.train()
    step(net, optimizer, x)
    assert not utils.prune.is_pruned(net)


def test_torch_prune_on_what_has_no_masked_form():
    net = nn.Sequential(nn.ConvTranspose1d(2, 2, 3), tied()[1])
    utils.prune.l1_unstructured(net[0], "weight", 0.5)
    ds.prune.from_torch_prune_(net)
    assert utils.prune.is_pruned(net[0]) and not ds.prune.masks(net)


def test_loss_goes_down_with_every_pattern():
    x, y = torch.randn(32, 2, 5, 5), torch.randn(32, 4)
    for pattern in (ds.NM(2, 4), ds.Block(4, 4), ds.TopKRows(4), ds.TopKColumns(1)):
        net = ds.prune.sparsify_(Net(), None if pattern.fixed else 0.5, pattern)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


def test_frozen_grounds_are_forgotten_where_weights_are_pruned():
    net = (
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)).double().eval()
    )
    image = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    image[0, 0, 4, 4] = 1.0
    x = ds.SparseTensor.from_dense(image)
    changes = (
        lambda: ds.prune.sparsify_(net, 0.5),
        lambda: net[0].set_mask(~net[0].mask),
        lambda: net[2].set_mask(torch.zeros_like(net[2].mask)),
    )
    for change in changes:
        ds.freeze_ground(net, (8, 8))
        with torch.no_grad():
            net(x)
            change()
            assert torch.allclose(net(x).to_dense(), net(image), rtol=1e-12, atol=1e-12)
