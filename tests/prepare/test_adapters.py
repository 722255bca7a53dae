"""Other people's QCFS layers: found by what they hold, held to what they compute."""

from __future__ import annotations

import pytest
import torch
from support import networks
from torch import fx, nn

from bridge import QCFS, ConversionError, convert
from bridge.prepare.adapters import as_qcfs, is_activation, register_activation, unregister_activation


class Official(nn.Module):
    """Holds and computes what the activation of putshua/ANN_SNN_QCFS does while T = 0: clip, then floor."""

    def __init__(self, thresh=8.0, L=8, T=0):  # noqa: N803  the authors' names
        super().__init__()
        self.expand = nn.Identity()  # theirs has children too
        self.thresh = nn.Parameter(torch.tensor([thresh]))
        self.tau, self.gama = 1.0, 1.0
        self.L, self.T = L, T

    def forward(self, x):
        assert self.T == 0
        return torch.floor(torch.clamp(x / self.thresh, 0, 1) * self.L + 0.5) / self.L * self.thresh


class Older(nn.Module):
    """Holds and computes what the activation of putshua/SNN_conversion_QCFS does: floor, then clip."""

    def __init__(self, up=8.0, t=32):
        super().__init__()
        self.up = nn.Parameter(torch.tensor([up]))
        self.t = t

    def forward(self, x):
        return torch.clamp(torch.floor(x / self.up * self.t + 0.5) / self.t, 0, 1) * self.up


@pytest.mark.parametrize("cls", [Official, Older])
@pytest.mark.parametrize("levels", [1, 2, 4, 8, 16])
def test_same_values_ties_included(cls, levels):
    theirs = cls(2.0, levels)
    ours = as_qcfs(theirs)
    assert isinstance(ours, QCFS)
    assert ours.levels == levels
    assert ours.threshold.shape == ()
    assert not ours.per_channel
    ties = (torch.arange(-3, levels + 4) + 0.5) * 2 / levels
    for z in (ties, torch.randn(2, 3, 5, 5) * 2, networks.dyadic_images(2, (3, 4))):
        torch.testing.assert_close(ours(z), theirs(z), rtol=0, atol=0)


def read(module: nn.Module) -> QCFS:
    """`module` as the QCFS that it is."""
    found = as_qcfs(module)
    assert found is not None
    return found


@pytest.mark.parametrize("cls", [Official, Older])
@pytest.mark.parametrize("levels", [3, 8, 10, 12, 100])
def test_same_values_with_any_threshold(cls, levels):
    theirs = cls(1.7, levels)
    z = torch.rand(4, 1000) * 3 - 0.5
    torch.testing.assert_close(read(theirs)(z), theirs(z))


def test_nothing_is_shared_and_nothing_changes():
    theirs = Official(2.0, 4).eval()
    ours = read(theirs)
    assert not ours.training
    with torch.no_grad():
        ours.threshold.fill_(7.0)
    assert theirs.thresh.item() == 2.0
    assert read(theirs.double()).threshold.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    theirs = Official(1.7, 32).to(dtype)
    assert read(theirs).threshold.dtype == dtype


def test_our_own_comes_back():
    qcfs = QCFS(4)
    assert as_qcfs(qcfs) is qcfs
    lazy = QCFS(4, per_channel=True)
    assert as_qcfs(lazy) is lazy


class Holder(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.Linear(1, 1),
        Holder(thresh=torch.ones(1)),
        Holder(thresh=torch.ones(1), T=0),
        Holder(thresh=1.0, L=4, T=0),  # a number is what other people's LIF neurons hold
        Holder(thresh=torch.ones(1), L="4", T=0),
        Holder(thresh=torch.ones(1), L=True, T=0),
        Holder(thresh=torch.ones(1, dtype=torch.int64), L=4, T=0),
        Holder(up=nn.Upsample(scale_factor=2), t=4),
        Holder(up=torch.ones(1)),
        Holder(thresh=nn.Parameter(torch.ones(1)), L=4, T=0, scale=nn.Parameter(torch.ones(1))),
        Holder(thresh=nn.Parameter(torch.ones(1)), L=4, T=0, layer=nn.Linear(2, 2)),  # a whole network
        Holder(up=nn.UninitializedParameter(), t=4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_unrelated_modules_do_not_match(module):
    assert as_qcfs(module) is None
    assert not is_activation(module)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Official(2.0, 4, T=8), r"set to spike for T = 8 steps.*set_T\(0\)"),
        (Official(2.0, 0), r"levels L must be a whole number of at least 1, got 0"),
        (Official(2.0, 2.5), r"levels L .* got 2\.5"),
        (Official(2.0, float("nan")), r"levels L .* got nan"),
        (Older(2.0, 0), r"levels t .* got 0"),
        (Official(-1.0), r"λ, thresh, must be positive and finite, got -1"),
        (Older(float("inf")), r"λ, up, must be positive and finite, got inf"),
        (Holder(thresh=torch.ones(3), L=4, T=0), r"shape \[3\].*register_activation"),
        (Holder(thresh=torch.ones(1), L=4, T=0), r"does not compute QCFS: at -?[\d.]+ it gives"),
    ],
)
def test_unusable_ones_are_refused(module, message):
    assert is_activation(module)
    with pytest.raises(ConversionError, match=message):
        as_qcfs(module)


def test_a_layer_without_the_shift_is_not_qcfs():
    class NoShift(Official):
        def forward(self, x):
            return torch.floor(torch.clamp(x / self.thresh, 0, 1) * self.L) / self.L * self.thresh

    class Broken(Official):
        def forward(self, x):
            raise RuntimeError("no")

    class Sum(Official):
        def forward(self, x):
            return x.sum()

    with pytest.raises(ConversionError, match="does not compute QCFS"):
        as_qcfs(NoShift())
    with pytest.raises(ConversionError, match="could not be run: no"):
        as_qcfs(Broken())
    with pytest.raises(ConversionError, match="does not keep the shape"):
        as_qcfs(Sum())


def test_levels_that_are_whole_as_a_float():
    assert read(Official(2.0, 4.0)).levels == 4


class Mine(nn.Module):
    def __init__(self, count=4, height=3.0):
        super().__init__()
        self.count, self.height = count, height


class MineToo(Mine):
    pass


@pytest.fixture
def registered():
    yield register_activation
    for cls in (Mine, MineToo, Official):
        unregister_activation(cls)


def test_registered(registered):
    assert as_qcfs(Mine()) is None
    registered(Mine, lambda module: (module.count, module.height))
    made = read(Mine(8, 1.5))
    assert (made.levels, made.threshold.item()) == (8, 1.5)
    assert read(MineToo()).levels == 4  # a subclass
    registered(MineToo, lambda module: QCFS(16))  # nearer than Mine
    assert read(MineToo()).levels == 16
    registered(Mine, lambda module: (2, torch.ones(5)))  # again: replaced
    assert read(Mine()).threshold.shape == (5,)
    assert is_activation(Mine())
    unregister_activation(Mine)
    unregister_activation(Mine)
    assert as_qcfs(Mine()) is None


def test_registered_goes_before_what_is_known(registered):
    registered(Official, lambda module: (module.L, module.thresh.reshape(())))
    assert read(Official(2.0, 4, T=8)).levels == 4


@pytest.mark.parametrize(
    ("to_qcfs", "message"),
    [
        (lambda module: None, r"registered for Mine must return.*got None"),
        (lambda module: (4,), r"registered for Mine must return"),
        (lambda module: (0, 1.0), r"registered for Mine failed: QCFS: levels"),
        (lambda module: module.absent, r"registered for Mine failed: .*absent"),
    ],
)
def test_a_registered_function_that_fails(registered, to_qcfs, message):
    registered(Mine, to_qcfs)
    with pytest.raises(ConversionError, match=message):
        as_qcfs(Mine())


def test_register_what_cannot_be(registered):
    with pytest.raises(ConversionError, match="expected a class"):
        registered(Mine(), lambda module: (4, 1.0))
    with pytest.raises(ConversionError, match="expected a class"):
        registered(int, lambda module: (4, 1.0))
    with pytest.raises(ConversionError, match="must be a function"):
        registered(Mine, (4, 1.0))


def test_is_activation_may_be_asked_while_fx_traces():
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return is_activation(m) or super().is_leaf_module(m, module_qualified_name)

    model = nn.Sequential(nn.Linear(2, 2), Official(), nn.Linear(2, 2), Older(), QCFS(4))
    calls = [str(node.target) for node in Tracer().trace(model).nodes if node.op == "call_module"]
    assert calls == ["0", "1", "2", "3", "4"]


def test_a_network_of_theirs_converts_as_one_of_ours():
    model = nn.Sequential(nn.Linear(6, 8), Official(2.0, 4), nn.Linear(8, 5), Older(1.5, 8), nn.Linear(5, 3))
    ours = nn.Sequential(*(as_qcfs(module) or module for module in model))
    x = torch.randn(4, 6)
    a, b = convert(model, x).run(x, 8), convert(ours, x).run(x, 8)
    assert all((a.spikes(layer) == b.spikes(layer)).all() for layer in b.layers)
    model[1].T = 4  # type: ignore[assignment]
    with pytest.raises(ConversionError, match=r"1 \(Official\): .*set to spike"):
        convert(model, x)
