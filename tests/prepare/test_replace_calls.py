"""Models that call ReLU as a function train, after `replace_activations`, as they did before.

The oracle is the same model with QCFS modules written where the calls were.
"""

from __future__ import annotations

import copy
import io
import random
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bridge
from bridge import QCFS, ConversionError, replace_activations


class Plain(nn.Module):
    """Everything that depends on the mode, by function: batch norm, dropout, an auxiliary output, a loop."""

    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv2d(1, 4, 3), nn.Linear(36, 16), nn.Linear(16, 3)
        self.early, self.late = nn.Linear(36, 3), nn.Linear(16, 3)
        self.steps = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def relu(self, x: Tensor, name: str) -> Tensor:
        return F.relu(x)

    def forward(self, x: Tensor) -> Any:
        x = self.relu(F.batch_norm(self.conv(x), self.mean, self.var, training=self.training), "first").flatten(1)
        if self.training:
            early = self.relu(self.early(x), "early")
        x = self.relu(self.fc(x), "second")
        for number, step in enumerate(self.steps):
            x = F.dropout(self.relu(step(x), f"loop{number}"), 0.3, self.training)
        return (self.out(x), early, self.relu(self.late(x), "late")) if self.training else self.out(x)


class Written(Plain):
    """The oracle: `Plain` with a module for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.acts = nn.ModuleDict({name: QCFS(4) for name in NAMES})

    def relu(self, x: Tensor, name: str) -> Tensor:
        y: Tensor = self.acts[name](x)
        return y


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)


class Calls(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x))


NAMES = ("first", "second", "loop0", "loop1", "loop2", "early", "late")


def images(count: int = 8, seed: int = 0) -> Tensor:
    return 4 * torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, steps: int = 3) -> list[Tensor]:
    """Losses of a few steps, with random numbers that are the same each time."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(3)
    losses = []
    for step in range(steps):
        outputs = model.train()(images(seed=step))
        loss = torch.stack([(output - 1).square().mean() for output in outputs]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return losses


def pair() -> tuple[Written, nn.Module]:
    """The oracle, and what `replace_activations` makes of the same weights."""
    torch.manual_seed(1)
    oracle, model = Written(), Plain()
    model.load_state_dict(oracle.state_dict(), strict=False)
    return oracle, replace_activations(model, levels=4)


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, λ apart, which have other names."""
    return {name: value for name, value in model.state_dict().items() if not name.endswith("threshold")}


def thresholds(model: nn.Module) -> list[float]:
    return sorted(float(value) for name, value in model.state_dict().items() if name.endswith("threshold"))


def test_it_trains_as_the_model_with_modules_does():
    oracle, got = pair()
    assert train(got) == train(oracle)
    expected, actual = state(oracle), state(got)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert thresholds(got) == thresholds(oracle)
    assert len(set(thresholds(got))) > 5  # they have all learnt, each for itself
    assert torch.equal(got.eval()(images()), oracle.eval()(images()))


def test_modes():
    _, got = pair()
    x = images()
    first, second = got.train()(x), got(x)
    assert len(first) == 3
    assert not torch.equal(first[0], second[0])
    assert bool((got.get_buffer("mean") != 0).any())
    before = got.get_buffer("mean").clone()
    assert torch.equal(got.eval()(x), got(x))
    assert torch.equal(got.get_buffer("mean"), before)
    bridge.convert(got, x)


def test_names_are_those_of_the_operations_at_inference():
    _, got = pair()
    names = {name for name, _ in got.named_parameters() if name.endswith("threshold")}
    assert {"relu_replaced.threshold", *(f"relu_{i}_replaced.threshold" for i in range(1, 5))} < names
    assert len(names) == len(NAMES)


def test_code_for_each_mode_shares_the_activations():
    class Block(Base):
        def forward(self, x):
            return F.relu(self.fc(x))

    class Branches(Base):
        """One block and one call, each written twice; and the block is called once more in training."""

        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            if self.training:
                x = self.block(x)
                return F.relu(self.fc(self.block(x))), F.relu(x + 1)
            return F.relu(self.fc(self.block(x)))

    got = replace_activations(Branches(), levels=4)
    modules = {name for name, module in got.named_modules() if isinstance(module, QCFS)}
    used: dict[bool, list[str]] = {True: [], False: []}

    def note(name: str, *_: Any) -> None:
        used[got.training].append(name)

    for name in modules:
        got.get_submodule(name).register_forward_hook(partial(note, name))
    got.train()(torch.rand(2, 4))
    got.eval()(torch.rand(2, 4))
    assert len(modules) == 4
    assert len(used[False]) == 2
    assert set(used[False]) < set(used[True]) == modules


def test_an_activation_for_inference_alone_is_reported():
    class Alone(Base):
        def forward(self, x):
            return self.fc(x) if self.training else F.relu(self.fc(x))

    with pytest.warns(UserWarning, match=r"eval\(\) alone the ReLU that relu_replaced replaces"):
        replace_activations(Alone(), levels=4)


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_whole])
def test_copies_share_nothing_and_train_alike(copied):
    _, got = pair()
    other = copied(got)
    assert list(other.state_dict()) == list(got.state_dict())
    assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in got.parameters()}
    assert train(other) == train(got)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in got.state_dict().items())
    x = images()
    assert torch.equal(other.eval()(x), got.eval()(x))
    fresh = pair()[1]
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh.eval()(x), got(x))
    assert other.double()(x.double()).dtype == torch.float64
    assert len(other.train()(x.double())) == 3


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_as_a_script_exported_and_compiled():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(F.dropout(F.relu(self.one(x)), training=self.training))

    got = replace_activations(Dropping(), levels=4)
    x = 4 * torch.rand(5, 4)
    script = torch.jit.script(got)
    assert not torch.equal(script(x), script(x))
    expected = got.eval()(x)
    assert torch.equal(script.eval()(x), expected)
    assert torch.equal(torch.jit.trace(got, x)(x), expected)
    assert torch.equal(torch.export.export(got, (x,)).module()(x), expected)
    assert torch.equal(torch.compile(got, backend="eager", fullgraph=True)(x), expected)


def test_optional_arguments_are_at_their_defaults():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x, return_features=False, labels=None, *rest, scale=2.0, **options):
            features = F.relu(self.one(x)) * scale
            if return_features or options.get("features"):
                return features
            y = self.two(features)
            return y if labels is None else F.cross_entropy(y, labels)

    model = Optional()
    got = replace_activations(model, levels=4)
    x = torch.randn(9, 4)
    assert torch.equal(got(x), model.two(QCFS(4)(model.one(x)) * 2))
    with pytest.raises(TypeError, match="labels"):
        got(x, labels=torch.zeros(9))


def test_constants_made_in_forward():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.shift = torch.arange(3.0)  # neither a parameter nor a buffer

        def forward(self, x):
            x = F.relu(self.fc(x) * torch.tensor([1.0, 2.0, 3.0]) + self.shift)
            return F.dropout(x, training=self.training) * torch.tensor([1.0, 0.5, 0.25])

    model = Constant()
    before = set(vars(model))
    got = replace_activations(model, levels=4)
    assert set(vars(model)) == before
    x = 3 * torch.rand(7, 3)
    inner = QCFS(4)(model.fc(x) * torch.tensor([1.0, 2.0, 3.0]) + torch.arange(3.0))
    expected = inner * torch.tensor([1.0, 0.5, 0.25])
    assert torch.equal(got.eval()(x), expected)
    assert torch.equal(saved_whole(got)(x), expected)


def test_buffers_changed_by_hand_and_the_random_state():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            x = F.relu(self.fc(x))
            mean: Any = self.mean
            if self.training:
                mean.mul_(0.5).add_(x.detach().mean(0), alpha=0.5)
            return x - mean

    model = Running()
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(2), random.random()
    torch.manual_seed(0)
    random.seed(0)
    got = replace_activations(model, levels=4)
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]
    assert not bool(model.get_buffer("mean").any())
    x = torch.ones(2, 3) * 5
    got(x)
    assert torch.equal(got.get_buffer("mean"), QCFS(4)(model.fc(x)).mean(0) / 2)


class LooksAtTheData(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x))
        return x + 1 if x.sum() > 0 else x


class LooksInTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x))
        return x + 1 if self.training and x.sum() > 0 else x


class DrawsInTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x))
        return x + 1 if self.training and torch.rand(()) > 0.5 else x


class NoGradients(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.fc(x))
        return x + 1


@pytest.mark.parametrize("kind", [LooksInTraining, DrawsInTraining, NoGradients])
def test_a_training_that_cannot_be_followed(kind):
    with pytest.warns(UserWarning, match=rf"{kind.__name__}: .* in train mode .*no longer happen.*nn\.ReLU"):
        got = replace_activations(kind(), levels=4)
    x = 4 * torch.rand(3, 4)
    assert torch.equal(got.train()(x), got.eval()(x))


def test_what_cannot_be_followed_at_all():
    with pytest.raises(ConversionError, match=r"nothing to replace\. LooksAtTheData: its forward cannot be followed"):
        replace_activations(LooksAtTheData(), levels=4)
    model = nn.Sequential(LooksAtTheData(), nn.ReLU(), Calls())
    with pytest.warns(UserWarning, match=r"0 \(LooksAtTheData\): .*each ReLU that it calls as a function stays"):
        got = replace_activations(model, levels=4)
    assert got.replaced_activations == "2 ReLU (1 of them a call)"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_parts_that_are_compiled_or_scripted():
    class Net(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part, self.last = part, Calls()

        def forward(self, x):
            return F.dropout(self.last(self.part(x)), training=self.training)

    x = 4 * torch.rand(3, 4)
    compiled = replace_activations(Net(torch.compile(Calls(), backend="eager")), levels=4)
    assert compiled.replaced_activations == "2 ReLU (2 of them calls)"
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    with pytest.warns(UserWarning, match=r"part .*it is scripted; replace before torch\.jit\.script"):
        got = replace_activations(Net(scripted), levels=4)
    assert got.replaced_activations == "1 ReLU (1 of them a call)"
    for model in (compiled, got):
        assert not torch.equal(model.train()(x), model(x))
        assert torch.equal(model.eval()(x), model(x))


def test_parts_of_what_cannot_be_followed_and_no_false_alarm():
    class Block(Base):
        def forward(self, x):
            return F.dropout(F.relu(self.fc(x)), training=self.training)

    class Checks(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.relu = nn.ModuleList([Block(), Block()]), nn.ReLU()

        def forward(self, x):
            if x.shape[-1] != 4:
                raise ValueError("expected 4 features")
            for block in self.blocks:
                x = block(x)
            return self.relu(x)

    model = Checks()  # no warning: its own forward calls no ReLU as a function
    assert replace_activations(model, levels=4) is model
    assert model.replaced_activations == "3 ReLU (2 of them calls)"
    x = 4 * torch.rand(3, 4)
    assert not torch.equal(model(x), model(x))
    assert {name for name, _ in model.named_parameters()} == {
        *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("fc.weight", "fc.bias", "relu_replaced.threshold")),
        "relu.threshold",
    }


def test_what_the_traced_model_no_longer_does():
    class Remembers(Base):
        last = None

        def forward(self, x):
            self.last = x
            return F.relu(self.fc(x))

    class Trains(Base):
        def train(self, mode=True):
            return super().train(mode)

        def forward(self, x):
            return F.relu(self.fc(x))

    model = Remembers()
    with pytest.warns(UserWarning, match="Remembers: its forward no longer sets last"):
        replace_activations(model, levels=4)
    assert model.last is None
    with pytest.warns(UserWarning, match=r"train\(\) as Trains defines it is no longer called"):
        replace_activations(Trains(), levels=4)


def test_a_drop_path_that_only_training_cannot_follow_stays():
    class DropPath(nn.Module):
        def forward(self, x):
            if not self.training:
                return x
            return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.5)

    class Net(Base):
        def __init__(self):
            super().__init__()
            self.path = DropPath()

        def forward(self, x):
            return self.path(F.relu(self.fc(x)) + 1)

    got = replace_activations(Net(), levels=4)
    rows = got.train()(torch.ones(64, 4)).sum(1) == 0
    assert 0 < int(rows.sum()) < 64
    assert bool((got.eval()(torch.ones(64, 4)) > 0).all())
