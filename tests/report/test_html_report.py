"""The page in a real browser: it shows what the JSON says, its controls work, and it asks nothing of a network."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import networks
from support.backends import require

import bridge
from bridge import InputError
from bridge.report import html
from exporters.spikingjelly import SpikingJelly

STEPS, IMAGES = 6, 10
PHONE = {"width": 360, "height": 740}
HOSTILE = "<img src=x onerror=alert(1)> & '</script>"


class Wrong(SpikingJelly):
    """SpikingJelly with v(0) off by 0.1 in the middle layer."""

    name = HOSTILE

    def export(self, graph):
        native = super().export(graph)
        offset = native.get_submodule("layer_4").v_offset
        assert isinstance(offset, torch.Tensor)
        offset.fill_(0.4)
        return native


@pytest.fixture
def show(browser, tmp_path):
    """Opens an agreement's page; afterwards nothing may have been said in the console or asked of a network."""
    wrong, pages = [], []

    def opened(agreement, **options):
        path = tmp_path / "page.html"
        html.write(agreement, path)
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if request.url == path.as_uri() else wrong.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert not wrong


def validated(backends, network=None):
    for name in ("snntorch", "spikingjelly"):
        require(name)
    model, shape = networks.cnn()
    x = networks.dyadic_images(IMAGES, shape)
    network = network or bridge.convert(model, x)
    return network.validate(x, STEPS, backends, labels=np.arange(IMAGES) % 4)


@pytest.fixture(scope="module")
def agreeing():
    return validated(["spikingjelly", "snntorch"])


@pytest.fixture(scope="module")
def failing():
    require("spikingjelly")
    return validated(["snntorch", Wrong()])


def cells(page, selector):
    """Texts of a table's body, row by row."""
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    return page.eval_on_selector_all(f"{selector} tbody tr", script)


def titles(page, selector):
    """What the marks, or cells, of a picture say when they are pointed at."""
    return page.eval_on_selector_all(selector, "marks => marks.map(mark => mark.title || mark.textContent)")


def heat_values(page):
    """The numbers behind the heat map's cells, by layer."""
    found: dict[str, list[float]] = {}
    for title in titles(page, "#heat td"):
        place, _, value = title.rpartition(": ")
        found.setdefault(place.rpartition(", t=")[0], []).append(float(value))
    return found


def test_the_page_holds_the_agreement(show, agreeing):
    page = show(agreeing)
    data = json.loads(page.text_content("#agreement"))
    assert data == json.loads(json.dumps(agreeing.to_dict()))
    assert list(data["neurons"]) == list(agreeing.neurons)
    assert "All 2 backends agree" in page.inner_text("#verdict")
    compared = IMAGES * STEPS * sum(agreeing.neurons.values())
    expected = [[name, "10", f"{compared:,}", "0", "—", "0", "✓ equal"] for name in ("spikingjelly", "snntorch")]
    assert cells(page, "#verdicts") == expected
    assert cells(page, "#between") == [["spikingjelly | snntorch", "0", "—"]]
    made = page.inner_text("#made")
    assert f"snntorch {agreeing.backends['snntorch'].versions['snntorch']}" in made
    assert agreeing.environment["packages"]["torch"] in made


def test_heat_map_of_every_backend_and_measure(show, failing):
    page = show(failing)
    assert page.input_value("#heat-run") == HOSTILE  # the one that failed comes first
    for name, backend in {"reference": failing.reference, **failing.backends}.items():
        page.select_option("#heat-run", name)
        for measure in ("differing", "rate_error", "rate_error_max", "cosine", "within"):
            page.select_option("#heat-measure", measure)
            assert heat_values(page) == getattr(backend, measure)
            assert name in page.inner_text("#heat caption")


def test_accuracy_and_the_anns_line(show, agreeing):
    page = show(agreeing)
    assert page.input_value("#curve-measure") == "accuracy"
    assert page.locator("#curve-ann").count() == 1
    for measure in ("accuracy", "top1_ann"):
        page.select_option("#curve-measure", measure)
        runs = {"reference": agreeing.reference, **agreeing.backends}
        expected = [f"{name}, t={t}: " for name in runs for t in range(1, STEPS + 1)]
        shown = [title.rpartition(" ") for title in titles(page, "#curve title")]
        assert [before + space for before, space, _ in shown] == expected
        assert [float(value) for *_, value in shown] == [v for run in runs.values() for v in getattr(run, measure)]
    assert page.locator("#curve-ann").count() == 0  # it is no accuracy


def test_parts_add_up_at_every_step(show, agreeing):
    page = show(agreeing)
    page.locator("details", has=page.locator("#parts-numbers")).locator("summary").click()
    for step in (STEPS, 1):
        page.locator("#parts-step").fill(str(step))
        assert f"t = {step} of {STEPS}" in page.inner_text("#parts-shown")
        parts = [float(title.rpartition(": ")[2]) for title in titles(page, "#parts title")]
        for number, layer in enumerate(agreeing.neurons):
            *shown, isolated = parts[5 * number : 5 * number + 5]
            assert sum(shown) == pytest.approx(agreeing.reference.rate_error[layer][step - 1], abs=1e-6)
            assert isolated == agreeing.rate_error.isolated[layer][step - 1]
            total = cells(page, "#parts-numbers")[number][5]
            assert float(total) == pytest.approx(agreeing.reference.rate_error[layer][step - 1], abs=1e-3)


def test_scatter_and_raster_of_the_chosen_layer_and_image(show, agreeing):
    page = show(agreeing)
    layer = list(agreeing.neurons)[1]
    page.select_option("#scatter-layer", layer)
    points = agreeing.samples["scatter"][layer]
    shown = [title.removeprefix("a/λ ").split(", φ(T) ") for title in titles(page, "#scatter title")]
    assert [[float(a), float(rate)] for a, rate in shown] == points
    drawn = set()
    for image in range(len(agreeing.samples["raster"][layer])):
        page.select_option("#raster-layer", layer)
        page.select_option("#raster-image", str(image))
        rows = zip(agreeing.samples["neurons"][layer], agreeing.samples["raster"][layer][image], strict=True)
        expected = [f"{layer}, neuron {neuron}, t={t}" for neuron, fired in rows for t in fired]
        assert titles(page, "#raster title") == expected
        drawn.add(tuple(expected))
    assert len(drawn) > 1


def test_a_failing_backend_is_shown_and_where_it_fails(show, failing):
    page = show(failing)
    assert "1 of 2 backend(s) disagree" in page.inner_text("#verdict")
    backend = failing.backends[HOSTILE]
    fine, bad = cells(page, "#verdicts")
    assert fine[-1] == "✓ equal"
    assert bad[0] == HOSTILE  # as text
    assert bad[3] == f"{backend.total_differing:,}"
    step, layer = backend.first
    assert bad[4] == f"t = {step}, {layer}"
    assert f"{backend.unexplained} spike(s) wrong by themselves" in bad[-1]
    first = backend.divergences[0]
    name, where, t, image, neuron, reference, got, *_, tie = cells(page, "#divergences")[0]
    assert (name, where, t, image) == (HOSTILE, first.layer, str(first.step), str(first.image))
    assert neuron == f"({', '.join(map(str, first.neuron))})"
    assert float(reference) == pytest.approx(first.reference_membrane)
    assert float(got) == pytest.approx(first.backend_membrane)
    assert tie == "no"


def test_nothing_known_but_the_spikes(show):
    """A network from a file has no ANN; samples may be left out, and a membrane may be NaN."""
    model, shape = networks.cnn()
    network = bridge.convert(model, networks.dyadic_images(1, shape))
    bare = validated([Wrong()], bridge.SpikingNetwork(network.graph))
    backend = bare.backends[HOSTILE]
    broken = replace(backend, divergences=[replace(backend.divergences[0], backend_membrane=math.nan)], accuracy=None)
    reference = replace(bare.reference, accuracy=None)
    page = show(replace(bare, reference=reference, backends={HOSTILE: broken}, samples={}, ann_accuracy=None))
    assert "1 of 1 backend(s) disagree" in page.inner_text("#verdict")
    assert heat_values(page) == backend.differing
    assert page.locator("#scatter, #raster, #parts").count() == 0
    assert page.locator("#heat-measure option").count() == page.locator("#curve-measure option").count() == 1


def test_no_backend(show, agreeing):
    page = show(replace(agreeing, backends={}, between={}))
    assert page.inner_text("#verdict") == "No backend was compared"
    assert heat_values(page) == agreeing.reference.rate_error


def test_on_a_phone_nothing_sticks_out(show, failing):
    page = show(failing, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


LUMINANCE = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const luminance = color => {
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  return [document.body, ...document.querySelectorAll("#heat td")].map(getComputedStyle)
    .map(style => [luminance(style.color), luminance(style.backgroundColor)]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable(show, failing, scheme):
    """By WCAG's contrast: 4.5 between letters and what they stand on, in every cell of the heat map too."""
    page = show(failing, color_scheme=scheme)
    found = []
    for measure in ("differing", "rate_error"):
        page.select_option("#heat-measure", measure)
        found += page.evaluate(LUMINANCE)
    _, background = found[0]
    assert (background > 0.8) if scheme == "light" else (background < 0.05)
    contrast = [(max(pair) + 0.05) / (min(pair) + 0.05) for pair in found]
    assert min(contrast) >= 4.5
    assert len({round(background, 3) for _, background in found}) > 5


def test_controls_have_names_and_take_keys(show, agreeing):
    page = show(agreeing)
    unnamed = "all => all.filter(one => !one.labels.length).length"
    assert page.eval_on_selector_all("select, input", unnamed) == 0
    before = page.inner_html("#parts")
    page.locator("#parts-step").focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_html("#parts") != before
    assert page.eval_on_selector_all("svg:not([aria-hidden])", "all => all.every(one => one.ariaLabel)") is True


def test_in_print_nothing_is_dark_or_cut(show, agreeing):
    page = show(agreeing, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")


def test_written_whole_or_not_at_all(agreeing, tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        html.write(agreeing, tmp_path)
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(InputError, match="surrogates not allowed"):  # half of a character cannot be written
        html.write(replace(agreeing, environment={"command": ["\ud800"]}), path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_who_decided_is_said(show):
    """In integers the engine stands for the reference."""
    require("snntorch")
    model, shape = networks.cnn()
    x = networks.dyadic_images(70, shape)
    network = bridge.convert(model, x)
    assert "The engine stands" not in show(network.validate(x[:3], STEPS, ["snntorch"])).inner_text("body")
    page = show(network.quantize(8, x).validate(x, STEPS, ["snntorch"]))
    assert "The engine stands for the reference simulator here; on the first 64 images" in page.inner_text("body")
