"""The way back: a framework's own module is trained, and its weights become a spiking network again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks
from support.backends import require
from torch import nn

import bridge
from bridge import InputError
from bridge.graph import Affine

FRAMEWORKS = ("norse", "sinabs", "snntorch", "spikingjelly")


def network(name="residual"):
    model, shape = networks.ALL[name]()
    x = networks.dyadic_images(4, shape)
    return bridge.convert(model, x), x


def trained(native):
    """As training does, but to weights that every arithmetic holds exactly."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in native.named_parameters():
            if name.endswith(("weight", "bias")):
                parameter += torch.randint(-3, 4, parameter.shape, generator=generator) / 16
    return native


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_was_trained_is_what_comes_back(framework):
    """Spike for spike; and it can be saved, read, quantized and validated."""
    backend = require(framework)
    before, x = network()
    native = trained(backend.export(before.to_nir()))
    expected = backend.run(native, x.numpy(), 5)
    for source in (native, native.state_dict()):
        after = before.with_weights(source)
        record = after.run(x, 5)
        for layer in after.layers:
            np.testing.assert_array_equal(record.spikes(layer), expected.spikes(layer), err_msg=layer)
        np.testing.assert_array_equal(record.readout, expected.readout)
    assert after.ann is None
    assert before.ann is not None
    assert not np.array_equal(after.run(x, 5).readout, before.run(x, 5).readout)
    assert after.validate(x, 5, [framework]).agreed


def test_saved_quantized_and_in_lavas_registers(tmp_path):
    backend = require("spikingjelly")
    before, x = network("cnn")
    after = before.with_weights(trained(backend.export(before.to_nir())))
    after.save(tmp_path / "n.nir")
    again = bridge.load(tmp_path / "n.nir")
    assert isinstance(again, bridge.SpikingNetwork)
    np.testing.assert_array_equal(again.run(x, 4).readout, after.run(x, 4).readout)
    pictures = torch.randint(0, 256, (20, *x.shape[1:]), generator=torch.Generator().manual_seed(1)) / 255
    whole = after.quantize(8, pictures)
    assert whole.validate(whole.pixels(pictures), 4, ["spikingjelly", "lava-twin"]).agreed


def test_really_trained():
    """With the framework's surrogate gradient, in half precision's prefix and in double precision."""
    backend = require("spikingjelly")
    before, x = network("mlp")
    native = backend.export(before.to_nir())
    optimizer = torch.optim.SGD(native.parameters(), 0.1)
    readout = native(x)
    nn.functional.cross_entropy(readout, torch.zeros(len(x), dtype=torch.long)).backward()
    optimizer.step()
    wrapped = {f"module._orig_mod.{name}": value.double() for name, value in native.state_dict().items()}
    after = before.with_weights(wrapped)
    weights = [layer.weight for layer in after.graph if isinstance(layer, Affine)]
    state = native.state_dict()
    for layer in after.graph:
        if isinstance(layer, Affine):
            np.testing.assert_array_equal(layer.weight, state[f"{layer.name}.weight"].numpy())
    assert all(weight.dtype == np.float32 for weight in weights)
    native.state_dict()["layer_0.weight"].zero_()
    assert any(weight.any() for weight in weights)  # it shares nothing with the module


def test_what_does_not_fit_is_listed():
    require("spikingjelly")
    subject, x = network("mlp")
    state = dict(bridge.registry.get("spikingjelly").export(subject.to_nir()).state_dict())
    first, second, *_ = (layer.name for layer in subject.graph if isinstance(layer, Affine))
    neuron = subject.layers[0]
    del state[f"{first}.bias"]
    state[f"{second}.weight"] = torch.zeros(2, 2)
    state[f"{second}.bias"] = torch.full_like(state[f"{second}.bias"], torch.nan)
    state["other.weight"] = torch.zeros(1)
    state[f"{neuron}.v_threshold"] = torch.tensor(0.8)
    with pytest.raises(InputError) as refused:
        subject.with_weights(state)
    for said in (
        f"{first}.bias: missing",
        f"{second}.weight: expected shape",
        f"{second}.bias: holds",
        "other.weight: no layer of that name",
        f"{neuron}.v_threshold: the threshold of this neuron is 1, got",
    ):
        assert said in str(refused.value)
    for other in (subject.quantize(8, torch.rand(20, *x.shape[1:])), staged(subject, x)):
        with pytest.raises(InputError, match="its levels follow from its weights; train the plain network"):
            other.with_weights(state)
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module or a state dict, got list"):
        subject.with_weights([1])  # type: ignore[arg-type]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_convert_says_how_it_goes_back(framework):
    subject, x = network("mlp")
    with pytest.raises(
        bridge.ConversionError, match=r"its trained weights go back with network\.with_weights\(model\)"
    ):
        bridge.convert(require(framework).export(subject.to_nir()), x)


def staged(subject, x):
    model, _ = networks.ALL["mlp"]()
    return bridge.convert(model, x, schedule="staged")


@pytest.mark.parametrize(
    ("framework", "change"),
    [
        ("snntorch", lambda neuron: neuron.beta.fill_(0.5)),
        ("snntorch", lambda neuron: neuron.below.mul_(0.2)),
        ("spikingjelly", lambda neuron: neuron.v_threshold.fill_(0.5)),
        ("spikingjelly", lambda neuron: neuron.v_offset.zero_()),
    ],
)
def test_a_neuron_that_was_changed_is_another(framework, change):
    """Its weights would come back as those of the exact neuron, which it is no more."""
    before, _ = network("cnn")
    native = require(framework).export(before.to_nir())
    before.with_weights(native)
    with torch.no_grad():
        change(getattr(native, before.layers[0]))
    with pytest.raises(InputError, match=r"\w+: this constant of the exact neuron was .*; set it back"):
        before.with_weights(native)


def test_a_module_of_another_kind():
    """Rockpool keeps linear weights the other way round."""
    before = bridge.convert(nn.Sequential(nn.Linear(4, 4), bridge.QCFS(4), nn.Linear(4, 4)))
    for module in (require("rockpool").export(before.to_nir()), nn.Linear(4, 4)):
        with pytest.raises(InputError, match=r"expected the torch module that the backend of .* got (Rockpool|Linear)"):
            before.with_weights(module)
    wrapped = nn.DataParallel(require("snntorch").export(before.to_nir()))
    assert before.with_weights(wrapped).ann is None


def test_what_is_no_state_dict():
    before, _ = network("cnn")
    with pytest.raises(InputError, match=r"got str; of a file, give torch\.load\(path\)"):
        before.with_weights("weights.pt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r'give the state dict in it, checkpoint\["state_dict"\]'):
        before.with_weights({"state_dict": {}, "epoch": 3})
