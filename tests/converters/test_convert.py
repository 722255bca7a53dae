"""What converts, what is refused and how, and that the caller's model stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import networks, oracle, own_forward
from torch import nn

import bridge
from bridge import QCFS, ConversionError, InputError
from bridge.simulate.ann import activations


def ann_of(network, x):
    """What the network's ANN gives for `x`."""
    assert network.ann is not None
    return activations(network.ann, x)[2]


def state(model):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    return tensors, {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_changed(training):
    model, shape = networks.cnn()
    model.train(training)
    model[3].eval()  # a mixture of modes must survive too
    x = networks.dyadic_images(3, shape)
    before = state(model)
    network = bridge.convert(model, x)
    after = state(model)
    assert before[1] == after[1]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    spikes = network.run(x, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # nor does the network change when the model does
    assert all(np.array_equal(network.run(x, 4).packed[name], spikes.packed[name]) for name in network.layers)


@pytest.mark.parametrize("name", networks.ALL)
def test_ann_activations_are_the_models_own(name):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(6, shape)
    network = bridge.convert(model, x)
    seen = []
    for module in model.modules():
        if isinstance(module, QCFS):
            module.register_forward_hook(lambda module, _, out: seen.append(out / bridge_channels(module, out)))
    with torch.no_grad():
        output = model.eval()(x)
    assert network.ann is not None
    normalised, _, got = activations(network.ann, x)
    assert torch.equal(got, output)
    assert len(seen) == len(normalised)
    for expected, values in zip(seen, normalised.values(), strict=True):
        assert torch.equal(values, expected)


def bridge_channels(module, like):
    return module.threshold.reshape(1, -1, *[1] * (like.dim() - 2)) if module.per_channel else module.threshold


def test_forward_written_with_functions():
    class Net(nn.Module):
        def __init__(self, flatten):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 2, 3), networks.qcfs())
            self.classifier = nn.Linear(2 * 4 * 4, 3)
            self.flatten = flatten

        def forward(self, x):
            x = F.dropout(self.features(x), 0.5, self.training)
            return self.classifier(self.flatten(x))

    shape = (1, 6, 6)
    x = networks.dyadic_images(3, shape)
    plain = networks.make_dyadic(nn.Sequential(nn.Conv2d(1, 2, 3), networks.qcfs(), nn.Flatten(), nn.Linear(32, 3)))
    expected = oracle.spikes_of(plain, x.numpy(), 4)
    for flatten in (
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.contiguous().view((x.size()[0], -1)),
    ):
        model = Net(flatten)
        model.features.load_state_dict(plain[:2].state_dict())
        model.classifier.load_state_dict(plain[3].state_dict())
        network = bridge.convert(model, x)
        assert network.layers == ("features_1",)
        record = network.run(x, 4)
        np.testing.assert_array_equal(record.spikes("features_1"), expected[0][0])
        np.testing.assert_array_equal(record.readout, expected[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model, shape = networks.mlp()
    x = networks.dyadic_images(4, shape)
    expected = oracle.spikes_of(model, x.numpy(), 5)
    network = bridge.convert(model.to(dtype), x)  # the grid fits all of them
    record = network.run(x.to(dtype), 5)
    for layer, spikes in zip(record.layers, expected[0], strict=True):
        np.testing.assert_array_equal(record.spikes(layer), spikes)


def test_padding_same_is_written_out():
    model = networks.make_dyadic(
        nn.Sequential(
            nn.Conv2d(1, 2, (3, 5), padding="same", dilation=(2, 1)), networks.qcfs(), nn.Flatten(), nn.Linear(84, 2)
        )
    )
    x = networks.dyadic_images(2, (1, 6, 7))
    explicit: Any = copy.deepcopy(model)
    explicit[0].padding = (2, 2)
    expected = oracle.spikes_of(explicit, x.numpy(), 4)
    record = bridge.convert(model, x).run(x, 4)
    np.testing.assert_array_equal(record.spikes(record.layers[0]), expected[0][0])


def test_every_unsupported_module_is_listed_with_a_remedy():
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 4, 3, padding=1))
    model.add_module("act", nn.ReLU())
    model.add_module("pool", nn.MaxPool2d(2))
    model.add_module("block", nn.Sequential(nn.GELU(), nn.LayerNorm([4, 4, 4])))
    model.add_module("spike", QCFS(4))
    model.add_module("softmax", nn.Softmax(1))
    with pytest.raises(ConversionError) as caught:
        bridge.convert(model, torch.zeros(1, 1, 8, 8))
    message = str(caught.value)
    lines = {line.split()[1]: line for line in message.splitlines()[1:]}
    assert set(lines) == {"act", "pool", "block.0", "block.1", "softmax"}
    assert "average pooling" in lines["pool"]
    assert "replace_activations" in lines["act"]
    assert "QCFS" in lines["block.0"]
    assert "BatchNorm" in lines["block.1"]
    assert "spike" not in lines


def test_every_broken_parameter_is_listed():
    model: Any = nn.Sequential(nn.Linear(3, 3), QCFS(4), nn.BatchNorm1d(3), nn.Linear(3, 3), QCFS(4), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[1, 2] = float("nan")
        model[2].running_var[0] = float("inf")
        model[3].bias[0] = float("-inf")
        model[4].threshold.fill_(-1.0)
    with pytest.raises(ConversionError) as caught:
        bridge.convert(model, torch.zeros(1, 3))
    message = str(caught.value)
    assert all(f"  - {name} " in message for name in "0234")
    assert "1 values that are NaN or infinite" in message
    assert "must be positive, got -1" in message


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Linear(4, 2)), "no bridge.QCFS activation"),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), QCFS(4), nn.Linear(4, 2)), "running statistics"),
        (nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 1), QCFS(4)), "makes a map of a vector"),
        (nn.Sequential(nn.Linear(4, 4), QCFS(4, per_channel=True)), "without a shape yet"),
    ],
)
def test_other_refusals(model, says):
    with pytest.raises(ConversionError, match=says):
        bridge.convert(model, torch.zeros(2, 4))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(4, ceil_mode=True),
        nn.AvgPool2d(3, stride=2, ceil_mode=True, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
        nn.Conv2d(1, 1, (1, 2), padding="same", dilation=3),
        nn.AdaptiveAvgPool2d(4),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Flatten(2),
        nn.Dropout2d(inplace=True),
        nn.ZeroPad2d((1, 0, 2, 0)),
        nn.ConstantPad2d((1, 0, 0, 3), 0.5),
        nn.CircularPad2d(1),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_options_that_nir_has_no_word_for(pool):
    model = nn.Sequential(QCFS(4), pool, nn.Flatten(), nn.LazyLinear(2), QCFS(4))
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    model(x)
    expected, nearest = own_forward.outputs(model.double(), x.double(), 4)
    assert nearest > 1e-6
    np.testing.assert_allclose(bridge.convert(model, x).run(x, 4).outputs(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "pads with zeros alone"),
        (nn.ConvTranspose2d(1, 1, 2), "enlarges a map"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "enlarges a map"),
        (nn.Upsample(scale_factor=2), "enlarges a map"),
    ],
    ids=str,
)
def test_what_enlarges_a_map_is_refused_with_that_reason(layer, says):
    model = nn.Sequential(QCFS(4), layer, nn.Conv2d(1, 1, 1), QCFS(4))
    with pytest.raises(ConversionError, match=says):
        bridge.convert(model, torch.rand(2, 1, 40, 40))


def test_forwards_that_are_no_fixed_graph_are_refused():
    class Dependent(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(3, 3), QCFS(4)

        def forward(self, x):
            return self.act(self.fc(x)) if x.sum() > 0 else x

    class Measured(Dependent):
        def forward(self, x):
            return self.act(self.fc(x)) * float(x.max())

    class TwoOutputs(Dependent):
        def forward(self, x):
            return self.act(self.fc(x)), x

    class Product(Dependent):
        def forward(self, x):
            return self.act(self.fc(x)) * x

    class NoData(Dependent):
        def forward(self, x):
            return self.act(self.fc(torch.zeros(2, 3)))

    class Assigned(Dependent):
        def forward(self, x):
            out = torch.zeros(2, 3)
            out[:, 1:] = self.act(self.fc(x))[:, 1:]
            return out

    expected = {
        Dependent: "depends on the data",
        Measured: "depends on the data",
        TwoOutputs: "several values",
        Product: "product of two signals",
        NoData: "does not depend on its input",
        Assigned: "made beforehand; join",
    }
    for kind, says in expected.items():
        with pytest.raises(ConversionError, match=says):
            bridge.convert(kind(), torch.zeros(2, 3))


def test_optional_arguments_keep_their_defaults():
    class Net(Two):
        def forward(self, x, labels=None, *, features=False, scale=2.0, **more):
            assert x.dim() == 2, "vectors"
            h = self.act(self.first(x) * scale)
            if labels is not None:
                return F.cross_entropy(self.last(h), labels)
            return h if features else self.last(h)

    x = torch.rand(3, 3)
    model = Net()
    network = bridge.convert(model, x)
    torch.testing.assert_close(ann_of(network, x), model(x))


@pytest.mark.parametrize(
    "example",
    [torch.zeros(2, 5), torch.zeros(4), torch.zeros(2, 4, dtype=torch.int64), np.zeros((2, 4), int), "images"],
)
def test_bad_example_input(example):
    with pytest.raises(InputError, match="example_input"):
        bridge.convert(nn.Sequential(nn.Linear(4, 4), QCFS(4), nn.Linear(4, 2)), example)


def test_not_a_model():
    with pytest.raises(ConversionError, match=r"path of an \.onnx file"):
        bridge.convert("model.pt", torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(2, 7), r"expected images \[B, 6\], got \[2, 7\]"),
        (torch.zeros(6), r"expected images \[B, 6\], got \[6\]: one image without its batch; give x\[None\]"),
        (torch.zeros(0, 6), "at least one image"),
        (torch.full((2, 6), float("nan")), "12 values that are NaN"),
        ([[0.0] * 6], r"expected batches that are images .* got float"),
        (np.array([["a"] * 6]), "real numbers"),
        (np.zeros((1, 6), complex), "real numbers"),
    ],
)
def test_bad_run_input(x, says):
    model, shape = networks.mlp()
    network = bridge.convert(model, torch.zeros(1, *shape))
    with pytest.raises(InputError, match=says):
        network.run(x, 4)
    with pytest.raises(InputError, match=says):
        network.validate(x, 4, [])


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, None])
def test_bad_steps(steps):
    model, shape = networks.mlp()
    network = bridge.convert(model, torch.zeros(1, *shape))
    with pytest.raises(InputError, match="steps"):
        network.run(torch.zeros(1, *shape), steps)


def test_inputs_of_many_kinds():
    model, shape = networks.cnn()
    network = bridge.convert(model, torch.zeros(1, *shape))
    x = networks.dyadic_images(70, shape)  # more than one batch
    expected = network.run(x, 3)
    strided = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    readonly = x.double().numpy().copy()
    readonly.setflags(write=False)
    for other in (x.numpy(), strided, readonly, x.clone().requires_grad_()):
        record = network.run(other, 3)
        assert all(np.array_equal(record.packed[name], expected.packed[name]) for name in network.layers)
    assert "SpikingNetwork([2, 9, 7] -> [4]" in repr(network)


def test_layer_names_are_identifiers_and_unique():
    model = nn.Sequential(nn.Linear(2, 2), QCFS(4), nn.Linear(2, 2))
    model.add_module("input", QCFS(4))
    model.add_module("output", nn.Linear(2, 2))
    names = [layer.name for layer in bridge.convert(model, torch.zeros(1, 2)).graph]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


class Two(nn.Module):
    """A layer, an activation and a readout, put together by each test in its own way."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3, 3), QCFS(4), nn.Linear(3, 2)
        self.relu = nn.ReLU(inplace=True)


def test_changes_in_place_are_followed():
    class Multiplied(Two):
        def forward(self, x):
            h = self.first(x)
            h.mul_(3)
            return self.last(self.act(h))

    class Added(Two):
        def forward(self, x):
            h = self.act(self.first(x))
            g = h
            g += x
            return self.last(g + h)

    class Assigned(Two):
        def forward(self, x):
            h = self.act(self.first(x)).clone()
            h[:, 0] = 0
            h[:, 1:] *= 2
            return self.last(h)

    x = torch.rand(5, 3)
    for kind in (Multiplied, Added, Assigned):
        model = kind()
        network = bridge.convert(model, x)
        with torch.no_grad():
            torch.testing.assert_close(ann_of(network, x), model(x))


def test_changes_in_place_that_cannot_be_followed_are_refused():
    class Rectified(Two):
        def forward(self, x):
            h = self.first(x)
            F.relu(h, inplace=True)
            return self.last(self.act(h))

    class Module(Two):
        def forward(self, x):
            h = self.first(x)
            self.relu(h)
            return self.last(self.act(h))

    class View(Two):
        def forward(self, x):
            h = self.act(self.first(x))
            part = h[:, :2]
            part += 1
            return self.last(h)

    for kind, says in ((Rectified, "replace_activations"), (Module, "replace_activations"), (View, r"in\s+place")):
        with pytest.raises(ConversionError, match=says):
            bridge.convert(kind(), torch.rand(2, 3))


def test_hooks_are_part_of_the_model():
    model = nn.Sequential(nn.Linear(3, 3), QCFS(4), nn.Linear(3, 2))
    model[0].register_forward_hook(lambda module, inputs, output: None)
    model[0].register_forward_hook(lambda module, inputs, output: output * 3)
    model[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.1,))
    model[2].register_forward_hook(lambda module, inputs, output: -output)
    x = torch.randn(20, 3)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        network = bridge.convert(model.to(dtype), x * float("nan"))  # of the example only the shape counts
        with torch.no_grad():
            torch.testing.assert_close(ann_of(network, x), model.float()(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_override_that_changes_the_result_is_refused(dtype):
    class Tripled(QCFS):
        def forward(self, z):
            return super().forward(3 * z)

    model = nn.Sequential(nn.Linear(3, 30), Tripled(4), nn.Linear(30, 2)).to(dtype)
    with pytest.raises(ConversionError, match=r"1 \(Tripled\): it does not compute"):
        bridge.convert(model, torch.randn(20, 3))


def test_a_wrong_example_is_told_where_it_fails(capsys):
    model, _ = networks.mlp()
    with pytest.raises(InputError, match=r"at 0 \(Linear\).*cannot be multiplied"):
        bridge.convert(model, torch.rand(4, 7))
    assert capsys.readouterr().err == ""
    broken = nn.Sequential(nn.Linear(3, 3), nn.GELU(), QCFS(4), nn.Linear(5, 2))
    with pytest.raises(ConversionError, match="GELU"):  # what is wrong before that point is said first
        bridge.convert(broken, torch.rand(2, 3))


def test_layers_on_other_shapes_are_refused_by_name():
    cases: dict[str, tuple[Any, torch.Tensor]] = {
        "makes a map of a vector": (nn.Sequential(nn.Linear(3, 3), QCFS(4), nn.Linear(3, 2)), torch.rand(2, 5, 3)),
        r"0 \(BatchNorm1d\)": (
            nn.Sequential(nn.BatchNorm1d(3), QCFS(4), nn.Flatten(), nn.Linear(3, 2)),
            torch.rand(2, 3),
        ),
    }
    with torch.no_grad():
        cases[r"0 \(BatchNorm1d\)"][0][0].running_var.fill_(-1)
    for says, (model, x) in cases.items():
        with pytest.raises(ConversionError, match=says):
            bridge.convert(model, x)
