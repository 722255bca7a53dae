"""Checkpoints: the names people save under, and files that are not what they should be."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
from typing import Any

import pytest
import torch
from test_adapters import Official, Older
from torch import nn

from bridge import QCFS, InputError, replace_activations
from bridge.prepare.checkpoints import load_checkpoint
from bridge.zoo import resnet20


def network(activation=lambda: QCFS(4, 1.0)):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), activation(), nn.Flatten(), nn.Linear(12, 5), activation()
    )


def trained(activation):
    """A network whose every value differs from a fresh one's, batch statistics included."""
    model = network(activation)
    model(torch.randn(8, 1, 4, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(6, 1, 4, 4)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("activation", [lambda: QCFS(4, 1.0), lambda: Official(1.0, 4), lambda: Older(1.0, 4)])
def test_any_checkpoint_into_our_model(tmp_path, images, activation, parallel):
    source = trained(activation)
    torch.save((nn.DataParallel(source) if parallel else source).state_dict(), tmp_path / "model.pth")
    model = network().eval()
    assert load_checkpoint(model, tmp_path / "model.pth") is model
    torch.testing.assert_close(model(images), source(images))
    assert model[2].threshold.item() == pytest.approx(next(source[2].parameters()).item())


@pytest.mark.parametrize("activation", [lambda: Official(1.0, 4), lambda: Older(1.0, 4)])
@pytest.mark.parametrize("source_activation", [lambda: QCFS(4, 1.0), lambda: Official(1.0, 4), lambda: Older(1.0, 4)])
def test_into_a_model_of_the_authors_layers(tmp_path, images, activation, source_activation):
    source = trained(source_activation)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    model = load_checkpoint(network(activation).eval(), str(tmp_path / "model.pt"))
    torch.testing.assert_close(model(images), source(images))
    assert isinstance(model[2], type(activation()))


def test_prefixes_on_both_sides_and_nesting(tmp_path):
    source = trained(lambda: QCFS(4, 1.0))
    wrapped = {f"module._orig_mod.{name}": value for name, value in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, tmp_path / "nested.pth")
    model = load_checkpoint(nn.DataParallel(network()), tmp_path / "nested.pth")
    assert torch.equal(model.module[0].weight, source[0].weight)
    torch.save({"net": {"model": source.state_dict()}}, tmp_path / "deeper.pth")
    assert torch.equal(load_checkpoint(network(), tmp_path / "deeper.pth")[4].bias, source[4].bias)


def test_the_authors_resnet_old_and_new(tmp_path):
    source = resnet20()
    for module in source.modules():
        if isinstance(module, QCFS):
            nn.init.uniform_(module.threshold, 1, 3)
    new = {
        name.replace("threshold", "thresh"): value.reshape(1) if name.endswith("threshold") else value
        for name, value in source.state_dict().items()
    }
    old = {name.replace("act.thresh", "relu.up").replace("thresh", "up"): value for name, value in new.items()}
    assert "conv2_x.0.relu.up" in old
    for number, state in enumerate((new, old)):
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        got = load_checkpoint(resnet20(), path).state_dict()
        assert all(torch.equal(value, got[name]) for name, value in source.state_dict().items())


def test_thresholds_per_channel(tmp_path):
    torch.save(trained(lambda: Official(2.0, 4)).state_dict(), tmp_path / "one.pth")
    model = network(lambda: QCFS(4, 1.0))
    model[2] = QCFS(4, torch.ones(3))
    load_checkpoint(model, tmp_path / "one.pth")
    assert model[2].threshold.shape == (3,)
    assert len(set(model[2].threshold.tolist())) == 1

    torch.save(model.state_dict(), tmp_path / "channels.pth")
    lazy = network()
    lazy[2] = QCFS(4, per_channel=True)
    load_checkpoint(lazy, tmp_path / "channels.pth")
    assert torch.equal(lazy[2].threshold, model[2].threshold)


def test_a_relu_model_is_told_to_replace_its_activations(tmp_path):
    torch.save(trained(lambda: Official(2.0, 4)).state_dict(), tmp_path / "model.pth")
    model = network(nn.ReLU)
    with pytest.raises(InputError, match=r"unexpected: 2\.thresh, 5\.thresh\n.*replace_activations"):
        load_checkpoint(model, tmp_path / "model.pth")
    load_checkpoint(replace_activations(model, levels=4), tmp_path / "model.pth")


def test_all_that_does_not_fit_is_told_at_once_and_nothing_changes(tmp_path):
    state = trained(lambda: Official(1.0, 4)).state_dict()
    del state["0.bias"], state["5.thresh"]
    state["extra"] = torch.zeros(1)
    state["2.up"] = torch.ones(1)  # a second λ for one place
    state["4.weight"] = torch.zeros(5, 13)
    state["4.bias"] = torch.zeros(5, dtype=torch.int64)
    state["0.weight"] = state["0.weight"].to_sparse()
    torch.save(state, tmp_path / "odd.pth")
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError) as caught:
        load_checkpoint(model, tmp_path / "odd.pth")
    message = str(caught.value)
    assert "missing: 0.bias, 5.threshold" in message
    assert "unexpected: extra, 2.up" in message
    assert "4.weight (has shape [5, 13], wanted [5, 12])" in message
    assert "4.bias (is torch.int64, wanted torch.float32)" in message
    assert "0.weight (not a plain tensor)" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_missing_batch_counts_are_forgiven(tmp_path):
    state = trained(lambda: QCFS(4, 1.0)).state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "old.pth")
    assert torch.equal(load_checkpoint(network(), tmp_path / "old.pth")[1].running_mean, state["1.running_mean"])


class Payload:
    """What unpickling would do: run code."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_python_objects_are_refused_and_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": network().state_dict(), "x": Payload()}, "bad.pth", _use_new_zipfile_serialization=zipped)
    torch.save(network(), "whole.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload()))
    for name in ("bad.pth", "whole.pth", "plain.pth"):
        with pytest.raises(InputError, match=r"Python objects|damaged") as caught:
            load_checkpoint(network(), name)
        assert "weights_only" not in str(caught.value)
    with pytest.raises(InputError, match=r"Python objects \(torch\.nn\..*save\(model\.state_dict\(\)"):
        load_checkpoint(network(), "whole.pth")
    assert not (tmp_path / "ran").exists()


def test_damaged_files(tmp_path):
    good = tmp_path / "good.pth"
    torch.save(network().state_dict(), good)
    whole = good.read_bytes()
    bad = tmp_path / "bad.pth"
    for content in (
        b"",
        b"not a checkpoint",
        whole[: len(whole) // 2],
        whole[:100],
        b"\x80\x02",
        whole[len(whole) // 2 :],
    ):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.pth: not a checkpoint, or damaged"):
            load_checkpoint(network(), bad)


def test_a_state_dict_in_place_of_a_file(images):
    source = trained(lambda: QCFS(4, 1.0))
    model = load_checkpoint(network(), {"state_dict": nn.DataParallel(source).state_dict()})
    torch.testing.assert_close(model.eval()(images), source(images), rtol=0, atol=0)
    assert model[0].weight.data_ptr() != source[0].weight.data_ptr()
    with pytest.raises(InputError, match=r"the state dict: its weights do not fit Sequential.*\n  missing: 4\.bias"):
        load_checkpoint(network(), {name: value for name, value in source.state_dict().items() if name != "4.bias"})
    with pytest.raises(InputError, match=r"the state dict: .* holds nothing"):
        load_checkpoint(network(), {})
    with pytest.raises(InputError, match=r"mismatched: 4\.bias \(not a plain tensor\)"):
        load_checkpoint(network(), source.state_dict() | {"4.bias": torch.empty(5, device="meta")})


@pytest.mark.parametrize("checkpoint", [None, 3, [torch.ones(1)], torch.ones(1)])
def test_neither_a_file_nor_a_state_dict(checkpoint):
    with pytest.raises(InputError, match="expected the path of a file or a state dict, got"):
        load_checkpoint(network(), checkpoint)


def test_arguments_the_wrong_way_round(tmp_path):
    model: Any = tmp_path / "model.pth"
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module first"):
        load_checkpoint(model, network())  # type: ignore[arg-type]


def test_not_a_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.pth: cannot be read: No such file"):
        load_checkpoint(network(), tmp_path / "absent.pth")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(network(), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), r"holds Tensor"),
        ([1, 2], r"holds list"),
        ({}, r"holds nothing"),
        ({"state_dict": {}}, r"holds nothing"),
        ({"epoch": 3, "weights": torch.ones(1)}, r"not tensors are epoch \(int\)"),
    ],
)
def test_not_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=message):
        load_checkpoint(network(), tmp_path / "odd.pth")


def test_a_dict_that_holds_itself_ends(tmp_path):
    loop: dict[str, object] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    with pytest.raises(InputError, match=r"not tensors are model \(dict\)"):
        load_checkpoint(network(), tmp_path / "loop.pth")


@pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="safetensors is not installed")
def test_safetensors(tmp_path, images):
    from safetensors.torch import save_file

    source = trained(lambda: Official(1.0, 4))
    path = tmp_path / "model.safetensors"
    save_file(source.state_dict(), path)
    torch.testing.assert_close(load_checkpoint(network().eval(), path)(images), source(images))
    for content in (b"", path.read_bytes()[:-10], b"\xff" * 8 + b"{}"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a checkpoint, or damaged"):
            load_checkpoint(network(), path)
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(network(), tmp_path / "absent.safetensors")


def test_safetensors_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(InputError, match="pip install safetensors"):
        load_checkpoint(network(), tmp_path / "model.safetensors")
