"""Blocks trained on the machines of a Ray cluster: the same bytes, whatever becomes of a machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from command_line import Run
from toy_network import toy_network

from fp4dit_onnx.calibration.methods import method_by_name
from fp4dit_onnx.calibration.work import Work
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import MissingExtraError, UsageError
from fp4dit_onnx.exporting.executing import check_executor, executor_of
from fp4dit_onnx.exporting.request import ExportRequest
from fp4dit_onnx.network.network import whole as whole_network
from fp4dit_onnx.runtime import Sampling
from fp4dit_onnx.system import ray_cluster
from fp4dit_onnx.system.executors import Need, Task
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.values import whole

NEED = Need(cpus=1, memory=2**20)
NOTED = "of nearest rounding"
"""In the line about each unit."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, and three machines of one CPU."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at import
        pytest.importorskip("ray", reason="needs Ray: pip install 'fp4dit-onnx[ray]'")
        from ray.cluster_utils import Cluster

        started = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(3):
            started.add_node(num_cpus=1)
        yield started
        started.shutdown()


@contextlib.contextmanager
def connected(address: str, *files: Path, need: Need = NEED) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ray_cluster.connected(address, need, files, lambda text: None) as found:
            yield found


class Recorder(SilentReporter):
    """Steps of each stage, and notes."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.steps: Counter[str] = Counter()
        self.notes: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str = "") -> Iterator[Any]:
        """Counts its steps."""
        self.totals[name] = total
        yield lambda steps, *_, **__: self.steps.update({name: steps})

    def note(self, text: str) -> None:
        """Keeps it."""
        self.notes.append(text)


def task(function: Any, *arguments: Any) -> Task[Any]:
    return Task("a call", function, arguments, lambda *_: None)


def test_a_machine_dies_and_the_bytes_are_the_same(cluster: Any, tmp_path: Path) -> None:
    from random_pipeline import make as make_pipeline

    make_pipeline("pixart-alpha-256", tmp_path / "model", twin=True)
    (
        tmp_path / "fp4dit_onnx"
    ).mkdir()  # in the folder of the command, as in a clone: not to be imported
    (tmp_path / "fp4dit_onnx" / "__init__.py").write_text("")
    victims = [*cluster.worker_nodes][:1]
    command = [sys.executable, "-P", "-m", "fp4dit_onnx", "export", "model", "--no-report"]
    command += ["--components", "transformer", "--inputs", "parallel", "--iterations", "20"]
    command += ["--steps", "2", "--calibration-prompts", "20", "--samples", "16", "--verbose"]
    spread = [*command, "-o", "spread", "--state", "spread.state"]
    spread += ["--executor", f"ray={cluster.address}"]
    said = []
    with subprocess.Popen(spread, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            said.append(line)
            if NOTED in line and victims:
                cluster.remove_node(victims.pop(), allow_graceful=False)
    assert running.returncode == 0, "".join(said)
    assert any("3 at a time" in line for line in said), said
    here = [*command, "-o", "here", "--state", "here.state"]
    subprocess.run(here, cwd=tmp_path, check=True, capture_output=True)
    states = [(tmp_path / f"{name}.state").read_bytes() for name in ("here", "spread")]
    assert states[0] == states[1]
    assert not list(tmp_path.glob("*.calibration"))


def test_images_made_there_are_the_same(cluster: Any, bundle: Path, demo_folder: Path) -> None:
    from fp4dit_onnx.evaluation import quality

    sampling = Sampling(2, 3.0, 64, 64, 16)
    reporters = {place: Recorder() for place in ("local", f"ray={cluster.address}")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here, there = (
            quality.evaluate(
                {"x": bundle},
                demo_folder,
                ["bat", "fox"],
                [1],
                sampling=sampling,
                executor=place,
                reporter=reporter,
            )
            for place, reporter in reporters.items()
        )
    assert there.to_json() == here.to_json()
    for name, pictures in here.pictures.items():
        assert [p.tobytes() for p in pictures] == [p.tobytes() for p in there.pictures[name]]
    local, ray = reporters.values()
    assert any("at a time with 1 CPU" in text for text in ray.notes)
    assert not local.notes
    for reporter in reporters.values():
        assert reporter.steps["generating with x"] == reporter.totals["generating with x"] == 2


def test_what_a_cluster_must_have(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(UsageError, match=r"no machine of the cluster has 64 CPUs, .* for a call"),
        connected(cluster.address, need=Need(cpus=64)),
    ):
        pytest.fail("the body must not run")
    with tempfile.TemporaryFile() as file:  # under a name of this process alone
        name = Path(f"/proc/self/fd/{os.dup2(file.fileno(), 200)}")
        message = r"machine .* does not see /proc/self/fd/200 as it is here: expected a folder"
        with pytest.raises(UsageError, match=message), connected(cluster.address, name):
            pytest.fail("the body must not run")
        os.close(200)
    other = {**ray_cluster.versions(), "fp4dit-onnx": "9.9"}
    monkeypatch.setattr(ray_cluster, "versions", lambda: other)
    message = r"machine .* has fp4dit-onnx 0\.1\.0, torch .*, this one fp4dit-onnx 9\.9, torch"
    with pytest.raises(UsageError, match=message), connected(cluster.address):
        pytest.fail("the body must not run")


def test_machines_must_see_settings_too(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a single file lie in a folder that was made here."""
    seen: list[Path] = []

    @contextlib.contextmanager
    def only_looking(_: Any, need: Need, files: Any, note: Any) -> Iterator[Any]:
        seen.extend(files)
        yield None

    monkeypatch.setattr(ray_cluster, "connected", only_looking)
    request = ExportRequest(tmp_path / "bundle", executor="ray")
    source, work = open_checkpoint(demo_folder), Work(tmp_path / "work", {})
    with executor_of(request, source, whole_network(toy_network()), work, SilentReporter()):
        pass
    named = {str(path.relative_to(demo_folder)) for path in seen if path != work.manifest}
    assert {"model_index.json", "transformer/config.json", "text_encoder/config.json"} <= named
    assert any(name.startswith("transformer/") and name.endswith(".safetensors") for name in named)
    assert work.manifest in seen


def test_calls_that_fail(cluster: Any) -> None:
    with connected(cluster.address) as found:
        (given,) = found.results([task(whole, "n", 3, 1)])
        assert given[0].name == "a call"
        with pytest.raises(UsageError, match="n = 0"):
            list(found.results([task(whole, "n", 0, 1)]))
        with pytest.raises(UsageError, match=r"a call: lost with its .* 5 times.* goes on from"):
            list(found.results([task(os._exit, 1)]))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", ("no head of a cluster answers", "ray start --head")),
        ("nowhere", ("'nowhere'", "HOST:PORT")),
        ("ray://there:10001", ("'ray://there:10001'", "HOST:PORT")),
    ],
)
def test_an_address_that_does_not_answer(
    run: Run, tmp_path: Path, address: str, words: tuple[str, ...]
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fp4dit-onnx[ray]'")
    output = tmp_path / "bundle"
    given = ["--inputs", "parallel", "--executor", f"ray={address}", "--quiet"]
    run("export", "-o", output, *given).refuses(*words)
    assert list(tmp_path.iterdir()) == []


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"fp4dit-onnx\[ray\]"), connected("h:1"):
        pytest.fail("the body must not run")


@pytest.mark.parametrize(
    ("text", "method", "words"),
    [
        ("ray", "fp4dit", "every block waits for the one before it.*expected --inputs parallel"),
        ("ray=h:1", "fp-rtn", "method fp-rtn looks at weights alone"),
        ("ray=", "fp4dit", "expected local, ray or ray=HOST:PORT"),
        ("local=2", "fp4dit", "expected local, ray or ray=HOST:PORT"),
        ("slurm", "fp4dit", "'slurm': expected local, ray or"),
    ],
)
def test_executors_that_are_refused(text: str, method: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_executor(text, method_by_name(method))
