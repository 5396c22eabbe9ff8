"""The local server of ``fp4dit-onnx serve``; test_page has what it serves."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifests import EMPTY

from fp4dit_onnx.bundle.bundle import Bundle, write_manifest
from fp4dit_onnx.bundle.manifest import Converted, Encoder, File, Weight
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.runtime.step_table import STEP_TABLE, bundle_step_table, write_step_table
from fp4dit_onnx.serve import serving, static_site
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.targets import TARGETS

pytest.importorskip("torch")  # the bundle that the small one is a copy of


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stands in for ONNX Runtime for the web, which tests of the server alone do not run."""
    if not serving.RUNTIME.is_file():
        module = tmp_path / "ort.wasm"
        module.write_bytes(b"\0asm")
        with tarfile.open(tmp_path / "runtime.tar.xz", "w:xz") as packed:
            packed.add(module, module.name)
        monkeypatch.setattr(serving, "RUNTIME", tmp_path / "runtime.tar.xz")


def serve(folder: Path) -> AbstractContextManager[serving.Server]:
    return serving.Server(Bundle.open(folder), "127.0.0.1", 0).in_background()


Answer = tuple[int, dict[str, str], bytes]


def ask(server: serving.Server, path: str, method: str = "GET", **headers: str) -> Answer:
    """Status, headers and body; the path goes out as it is written."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=given)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


@pytest.fixture
def small(bundle: Path, tmp_path: Path) -> Path:
    """A whole bundle whose models are a few bytes; for the server, not for a runtime."""
    folder = tmp_path / "small"
    for path in sorted(p for p in bundle.rglob("*") if p.suffix == ".json"):
        target = folder / path.relative_to(bundle)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for part in ("text_encoder", "transformer", "vae_decoder"):
        (folder / part / "model.onnx").write_bytes(bytes(range(100)))
    sampling = Bundle.open(bundle).manifest.sampling
    write_manifest(folder, replace(EMPTY, sampling=sampling))
    return folder


@pytest.mark.usefixtures("web")
def test_files_and_headers(small: Path) -> None:
    with serve(small) as server:
        status, headers, body = ask(server, "/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b"<canvas" in body
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert "http" not in headers["Content-Security-Policy"]
        kinds = {
            "/js/page.js": "text/javascript; charset=utf-8",
            "/style.css": "text/css; charset=utf-8",
            "/bundle/quantization.json": "application/json",
            "/bundle/transformer/model.onnx": "application/octet-stream",
        }
        for path, kind in kinds.items():
            status, headers, body = ask(server, path)
            assert (status, headers["Content-Type"]) == (200, kind)
            assert len(body) == int(headers["Content-Length"])
        assert ask(server, "/bundle/transformer/model.onnx", "HEAD")[2] == b""
        assert ask(server, "/", "POST")[0] == 501


@pytest.mark.usefixtures("web")
def test_ranges_and_caching(small: Path) -> None:
    path, whole = "/bundle/transformer/model.onnx", bytes(range(100))
    ranges = {
        "bytes=10-19": (206, whole[10:20], "bytes 10-19/100"),
        "bytes=90-": (206, whole[90:], "bytes 90-99/100"),
        "bytes=-5": (206, whole[95:], "bytes 95-99/100"),
        "bytes=95-500": (206, whole[95:], "bytes 95-99/100"),
        "bytes=100-": (416, b"", "bytes */100"),
        "bytes=0-1,5-6": (200, whole, None),
        "lines=1-2": (200, whole, None),
        f"bytes=95-{'9' * 5000}": (206, whole[95:], "bytes 95-99/100"),
        f"bytes={'9' * 5000}-": (416, b"", "bytes */100"),
        f"bytes=-{'9' * 5000}": (206, whole, "bytes 0-99/100"),
    }
    with serve(small) as server:
        for asked, (status, body, shown) in ranges.items():
            found = ask(server, path, Range=asked)
            assert (found[0], found[2], found[1].get("Content-Range")) == (status, body, shown)
        tag = ask(server, path)[1]["ETag"]
        assert ask(server, path, If_None_Match=tag)[::2] == (304, b"")
        (small / "transformer" / "model.onnx").write_bytes(whole[::-1] + b"!")
        assert ask(server, path, If_None_Match=tag)[::2] == (200, whole[::-1] + b"!")
        (small / "transformer" / "model.onnx").unlink()
        status, _, body = ask(server, path)
        assert status == 404
        assert b"no longer exists" in body


@pytest.mark.usefixtures("web")
def test_nothing_else_is_served(small: Path) -> None:
    (small / "secret.txt").write_text("not in the manifest")
    paths = [
        "/bundle/secret.txt",
        "/bundle/../secret.txt",
        "/../../../../etc/passwd",
        "/bundle/%2e%2e/%2e%2e/etc/passwd",
        "/bundle//etc/passwd",
        "//etc/passwd",
        "/js/..%2fpackage.json",
        "/package.json",
        "/js",
        "/bundle/",
    ]
    with serve(small) as server:
        for path in paths:
            assert ask(server, path)[0] == 404, path


@pytest.mark.usefixtures("web")
def test_tables_of_other_steps(small: Path) -> None:
    with serve(small) as server:
        path = "/bundle/scheduler/steps.json"  # which this bundle lacks
        for query, steps in (("", 20), ("?steps=7", 7)):
            status, _, body = ask(server, path + query)
            assert status == 200
            assert json.loads(body) == bundle_step_table(small, steps).to_json()
        for query in ("?steps=0", "?steps=-1", "?steps=ten", "?steps=1001", "?steps=", "?n=1"):
            status, _, body = ask(server, path + query)
            assert status == 400, query
            assert len(body.decode().splitlines()) == 1


@pytest.mark.usefixtures("web")
def test_port_in_use(small: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} .*in use.*--port"):
            serving.Server(Bundle.open(small), "127.0.0.1", port)


@pytest.mark.usefixtures("web")
def test_host_of_another_machine(small: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        serving.Server(Bundle.open(small), "192.0.2.1", 0)


def test_without_the_runtime_one_line_says_what_to_run(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "RUNTIME", tmp_path / "absent.tar.xz")
    with pytest.raises(UsageError, match=r"absent\.tar\.xz not found.*tools/vendor_web\.py"):
        serving.Server(Bundle.open(small), "127.0.0.1", 0)


@pytest.mark.parametrize("kept", [0, 5, 90])
def test_a_damaged_runtime_is_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    damaged = tmp_path / "runtime.tar.xz"
    with tarfile.open(damaged, "w:xz") as packed:
        packed.add(small / "quantization.json", "a.wasm")
    damaged.write_bytes(damaged.read_bytes()[:kept])
    monkeypatch.setattr(serving, "RUNTIME", damaged)
    with pytest.raises(
        UsageError, match=r"runtime\.tar\.xz cannot be unpacked .*install the wheel"
    ):
        serving.Server(Bundle.open(small), "127.0.0.1", 0)


def test_bundles_that_a_page_cannot_draw(small: Path) -> None:
    serving.check_drawable(Bundle.open(small))
    index = small / "model_index.json"
    manifest = small / "quantization.json"
    whole = json.loads(manifest.read_text())

    def store(pipeline: str, files: dict[str, Any]) -> Bundle:
        index.write_text(json.dumps({"_class_name": pipeline}))
        entry = {**files["model_index.json"], "bytes": index.stat().st_size}
        manifest.write_text(json.dumps({**whole, "files": {**files, "model_index.json": entry}}))
        return Bundle.open(small)

    with pytest.raises(
        UsageError, match=r"OmniGenPipeline.*PixArtAlphaPipeline.*load_transformer"
    ):
        serving.check_drawable(store("OmniGenPipeline", whole["files"]))
    alone = {n: e for n, e in whole["files"].items() if not n.startswith("vae_decoder")}
    with pytest.raises(UsageError, match=r"holds no vae_decoder.*whole pipeline"):
        serving.check_drawable(store("PixArtAlphaPipeline", alone))
    whole["target"] = "standard"
    with pytest.raises(
        UsageError, match=r"for the target standard, whose types.*serve the original bundle"
    ):
        serving.check_drawable(store("PixArtAlphaPipeline", whole["files"]))


@pytest.mark.usefixtures("web")
def test_a_copy_is_written_whole_or_not_at_all(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_step_table(small, 2)
    write_manifest(small, Bundle.open(small).manifest)
    bundle, site = Bundle.open(small), tmp_path / "site"
    with monkeypatch.context() as patch:
        patch.setattr(static_site.shutil, "copyfile", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            static_site.write_site(bundle, site, SilentReporter())
    assert not site.exists()
    static_site.write_site(bundle, site, SilentReporter())
    for name in bundle.manifest.files:
        assert (site / "bundle" / name).read_bytes() == (small / name).read_bytes()
    headers = (site / static_site.HEADER_FILE).read_text()
    assert "  Cross-Origin-Embedder-Policy: require-corp\n" in headers
    with pytest.raises(UsageError, match="site is not empty: expected a new folder"):
        static_site.write_site(bundle, site, SilentReporter())
    files = {k: v for k, v in bundle.manifest.files.items() if k != STEP_TABLE}
    bundle = replace(bundle, manifest=replace(bundle.manifest, files=files))
    with pytest.raises(UsageError, match=r"holds no scheduler/steps\.json"):
        static_site.write_site(bundle, tmp_path / "other", SilentReporter())


def test_memory_estimate(small: Path) -> None:
    manifest = replace(
        EMPTY,
        totals=replace(EMPTY.totals, transformer_bytes_float32=8000),
        text_encoders={"text_encoder": Encoder("T5", None, {"a": Weight((1, 60), 30, 240)})},
        files={
            "text_encoder/model.onnx.data": File("", 50),
            "vae_decoder/model.onnx": File("", 100),
        },
    )
    assert serving.memory_estimate(Bundle(small, manifest)) == 8000 + 240 + 2 * 20 + 2 * 100
    packed = replace(manifest, target="nbits", converted={"transformer": Converted(1000)})
    assert serving.memory_estimate(Bundle(small, packed)) == 1000 + 30 + 2 * 20 + 2 * 100


def test_the_page_knows_the_targets_for_webgpu() -> None:
    script = (serving.WEB / "js" / "worker.js").read_text()
    (listed,) = re.findall(r"FOR_WEBGPU = (\[.*?\])", script)
    assert json.loads(listed) == [name for name, target in TARGETS.items() if target.references]


@pytest.mark.usefixtures("web")
def test_ctrl_c_ends_the_command(small: Path) -> None:
    if not (serving.WEB / "vendor").is_dir():
        pytest.skip("needs fp4dit_onnx/web/vendor: run tools/vendor_web.py")
    program = [sys.executable, "-P", "-m", "fp4dit_onnx", "serve", str(small), "--port", "0"]
    with subprocess.Popen(
        [*program, "--no-browser"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        line = command.stdout.readline()
        command.send_signal(signal.SIGINT)
        output, errors = command.communicate(timeout=30)
    assert line.startswith("http://127.0.0.1:"), errors
    assert (command.returncode, output, errors) == (0, "ended\n", "")
