"""``fp4dit-onnx view``: Netron in a browser, on a quantized transformer, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("netron")
pytest.importorskip("playwright")

from screenshots import LAYER, open_in_netron

from fp4dit_onnx import ops
from fp4dit_onnx.errors import BundleError, MissingExtraError, UsageError
from fp4dit_onnx.serve import viewing
from fp4dit_onnx.serve.viewing import netron_server, onnx_file

COMMAND = [sys.executable, "-P", "-m", "fp4dit_onnx", "view", "--no-browser"]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert found is not None, line + (process.stderr.read() if process.stderr else "")
    return found[0]


@pytest.fixture(scope="module")
def page(browser: Any, demo_bundle: Path) -> Iterator[Any]:
    """Netron with the demo's transformer open and one linear selected."""
    process = start(str(demo_bundle))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.asked, page.refused = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.refused.append(message.text))
    try:
        open_in_netron(page, address(process), LAYER)
        yield page
    finally:
        page.close()
        process.terminate()
        process.communicate(timeout=10)


def values(page: Any) -> dict[str, str]:
    """What the side panel shows: names, and the values beside them."""
    rows = page.query_selector_all(".sidebar-item")
    named = (
        (row.query_selector("input"), row.query_selector(".sidebar-item-value-list"))
        for row in rows
    )
    return {
        name.input_value(): value.inner_text().strip("+\N{LATIN SMALL LETTER F WITH HOOK} \n")
        for name, value in named
        if name
    }


def test_the_panel_shows_formats_inputs_and_errors(page: Any) -> None:
    shown = values(page)
    assert shown["type"].split() == [ops.LINEAR]
    assert (shown["module"], shown["name"]) == (ops.DOMAIN, LAYER)
    assert (shown["weight_format"], shown["act_format"]) == ("e3m0", "e2m3")
    assert (shown["bits"], shown["group_size"], shown["K"]) == ("4", "128", "192")
    inputs = {"q": "input.q", "scale": "input.scale", "codes": "weight.codes"}
    inputs |= {"weight_scale": "weight.scale", "bias": "bias"}
    for name, suffix in inputs.items():
        assert shown[name] == f"name: {LAYER}.{suffix}"
    assert shown["description"] == "Linear 192 to 768: W e3m0 in groups of 128, A e2m3"
    assert (shown["packed"], shown["density"]) == ("76,800 bytes", "4.167 bits per weight")
    assert re.fullmatch(r"1\d\.\d\d dB", shown["weight SQNR"])


def test_nodes_are_found_by_module_path(page: Any) -> None:
    assert page.locator(f"[id='node-name-{LAYER}']").count() == 1
    assert page.locator("[id='node-name-transformer_blocks.3.attn1']").count() == 1


def test_boxes_show_formats(page: Any) -> None:
    """Without a click, unlike Netron by itself."""
    drawn = page.locator(f"[id='node-name-{LAYER}']").text_content()
    assert "weight_format = e3m0" in drawn
    assert "act_format = e2m3" in drawn


def test_the_body_opens_by_a_click(page: Any) -> None:
    """On the sign of a function: its documentation, and the nodes that it is made of."""
    page.get_by_title("Show Definition").first.click()
    page.locator(f"[id='node-name-{LAYER}']").wait_for(state="detached")  # the graph is left
    page.wait_for_selector("g.graph-node")
    drawn = {text.text_content() for text in page.query_selector_all("g.graph-node text")}
    assert {"FpUnpack", "FpDequantize", "MatMul", "Add"} <= drawn
    page.locator("#sidebar-target-button").click()
    assert "one scale for each output channel" in page.locator(".sidebar").inner_text()


def test_the_model_says_how_it_was_made(page: Any) -> None:
    page.locator("#sidebar-model-button").click()
    page.get_by_text("Model Properties").wait_for()
    shown = values(page)
    assert shown["description"] == "86 linear layers in 4.156 bits per weight"
    assert (shown["bits"], shown["method"]) == ("w4a6", "fp-rtn")
    assert shown["weight formats"] == "78 e2m1, 8 e3m0"
    assert re.fullmatch(r"1\d\.\d\d dB, transformer_blocks.*", shown["least weight SQNR"])


def test_nothing_is_asked_of_others_and_weights_when_wanted(page: Any, demo_bundle: Path) -> None:
    """Netron's page does ask others: it is told not to, and the browser not to let it."""
    own = [url for url in page.asked if url.startswith("http://127.0.0.1:")]
    assert own == [url for url in page.asked if not url.startswith("data:")]
    assert page.refused == []
    assert any(url.split("?")[0].endswith("/data/model.onnx") for url in own)
    assert not any(".data" in url for url in own)
    open_in_netron(page, own[0], LAYER)
    page.get_by_title("Show Tensor").first.click()
    page.get_by_text("Tensor Properties").wait_for()
    page.locator(".sidebar-item-value-button").last.click()
    codes = page.locator(".sidebar pre")
    codes.wait_for()
    model = onnx.load(demo_bundle / "transformer" / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == f"{LAYER}.weight.codes")
    first = onnx.numpy_helper.to_array(tensor)[0, :8]
    assert list(map(int, re.findall(r"\d+", codes.text_content())[:8])) == first.tolist()


def test_an_agreement_is_not_asked_for(page: Any) -> None:
    assert "cookies" not in page.inner_text("body")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly(demo_bundle: Path, number: signal.Signals) -> None:
    process = start(str(demo_bundle))
    address(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert errors == ""
    assert process.returncode == {signal.SIGINT: 0, signal.SIGTERM: 143}[number]


def test_a_browser_in_the_terminal(demo_bundle: Path, tmp_path: Path) -> None:
    """It runs as long as it is read in: the page has to be there meanwhile."""
    script = tmp_path / "browser.py"
    script.write_text(
        "import sys, urllib.request\n"
        "print('read', urllib.request.urlopen(sys.argv[1]).status, flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [*COMMAND[:-1], str(demo_bundle)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "BROWSER": f"{sys.executable} {script} %s"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address(process)
        assert process.stdout.readline() == "read 200\n"
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_a_port_in_use(demo_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        process = start(str(demo_bundle), "--port", port)
        output, errors = process.communicate(timeout=30)
    assert (output, process.returncode) == ("", 2)
    assert len(errors.splitlines()) == 1
    assert f"error: port {port} of 127.0.0.1 is in use" in errors
    assert "--port" in errors


def test_an_address_of_another_machine(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        netron_server(onnx_file(demo_bundle, "transformer"), "192.0.2.1", 0)


def test_parts_and_files(demo_bundle: Path, tmp_path: Path) -> None:
    assert onnx_file(demo_bundle, "vae_decoder") == demo_bundle / "vae_decoder" / "model.onnx"
    assert onnx_file(demo_bundle / "transformer" / "model.onnx", "") == (
        demo_bundle / "transformer" / "model.onnx"
    )
    with pytest.raises(BundleError, match="lists no unet: expected one of text_encoder, transf"):
        onnx_file(demo_bundle, "unet")
    other = tmp_path / "model.txt"
    other.write_text("no model")
    with pytest.raises(UsageError, match=r"expected an \.onnx file"):
        onnx_file(other, "transformer")
    with pytest.raises(BundleError, match="not found"):
        onnx_file(tmp_path / "nowhere", "transformer")


def test_a_bundle_cut_short(demo_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_bundle, tmp_path / "bundle")
    os.truncate(folder / "transformer" / "model.onnx.data", 1000)
    with pytest.raises(BundleError, match=r"model\.onnx\.data has 1000 bytes"):
        onnx_file(folder, "transformer")


def test_netron_is_not_installed(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(MissingExtraError, match=r"fp4dit-onnx\[view\]"):
        netron_server(demo_bundle / "transformer" / "model.onnx", "127.0.0.1", 0)


@pytest.fixture
def old_netron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of another version of Netron, to be written."""
    package = tmp_path / "netron"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "netron", raising=False)
    return package / "index.html"


def test_an_old_netron_opens(demo_bundle: Path, old_netron: Path) -> None:
    """By itself it opens nothing half a year after its date."""
    old_netron.write_text(
        '<head><meta name="version" content="9.0.0"><meta name="date" content="2020-01-01 00:00:00">'
        "</head>"
    )
    model = demo_bundle / "transformer" / "model.onnx"
    with netron_server(model, "127.0.0.1", 0).in_background() as server:
        with urllib.request.urlopen(server.url) as answer:
            page = answer.read().decode()
        assert re.findall(r'name="(\w+)" content="([^"]*)"', page) == [
            ("version", "0.0.0"),
            ("file", "/data/model.onnx"),
            ("name", "transformer/model.onnx"),
            ("identifier", "model.onnx"),
        ]


@pytest.mark.parametrize("text", ["<html></html>", '<meta name="version" content="8.4.4">'])
def test_another_page_of_netron(demo_bundle: Path, old_netron: Path, text: str) -> None:
    """One that cannot be told of a file, or that shows wrong weights."""
    old_netron.write_text(text)
    with pytest.raises(UsageError, match="another version of Netron"):
        netron_server(demo_bundle / "transformer" / "model.onnx", "127.0.0.1", 0)
