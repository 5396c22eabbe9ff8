"""``fp4dit-onnx view``: Netron in a browser, on a quantized transformer, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("netron")
pytest.importorskip("playwright")

from screenshots import LAYER, open_in_netron

from fp4dit_onnx import ops, viewing
from fp4dit_onnx.errors import BundleError, MissingExtraError, UsageError
from fp4dit_onnx.viewing import netron_server, onnx_file

COMMAND = [sys.executable, "-m", "fp4dit_onnx", "view", "--no-browser"]


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
    page.answered = []
    page.on("requestfinished", lambda request: page.answered.append(request.url))
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
    assert shown["layer"] == "192 inputs, 768 outputs"
    assert re.fullmatch(r"1\d\.\d\d dB", shown["weight SQNR"])


def test_nodes_are_found_by_module_path(page: Any) -> None:
    assert page.locator(f"[id='node-name-{LAYER}']").count() == 1
    assert page.locator("[id='node-name-transformer_blocks.3.attn1']").count() == 1


def test_the_body_opens_by_a_click(page: Any) -> None:
    """On the sign of a function: its documentation, and the nodes that it is made of."""
    page.get_by_title("Show Definition").first.click()
    page.locator(f"[id='node-name-{LAYER}']").wait_for(state="detached")  # the graph is left
    page.wait_for_selector("g.graph-node")
    drawn = {text.text_content() for text in page.query_selector_all("g.graph-node text")}
    assert {"FpUnpack", "FpDequantize", "MatMul", "Add"} <= drawn
    page.locator("#sidebar-target-button").click()
    assert "one scale for each output channel" in page.locator(".sidebar").inner_text()


def test_nothing_comes_from_other_hosts_and_no_weights_until_wanted(page: Any) -> None:
    """Netron's page does ask others; the browser is told not to let it."""
    own = [url for url in page.answered if url.startswith("http://127.0.0.1:")]
    assert own == [url for url in page.answered if not url.startswith("data:")]
    assert any(url.split("?")[0].endswith("/data/model.onnx") for url in own)
    assert not any(".data" in url for url in own)


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


def test_another_page_of_netron(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page changed so that it cannot be told of a file."""
    package = tmp_path / "netron"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "index.html").write_text("<html></html>")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "netron", raising=False)
    with pytest.raises(UsageError, match="another version of Netron"):
        netron_server(demo_bundle / "transformer" / "model.onnx", "127.0.0.1", 0)
