"""Devices of sessions: what is found, what is refused and with which cure, and what `auto` takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import Run
from fake_driver import FakeDriver, shared_object

pytest.importorskip("onnxruntime")

import onnxruntime
from onnxruntime.capi import build_and_package_info, onnxruntime_inference_collection

from fp4dit_onnx import doctor
from fp4dit_onnx.benchmark import LinearCase, Settings, backends, run_case
from fp4dit_onnx.benchmark.requests import Formats
from fp4dit_onnx.errors import BundleError, OutOfMemoryError, UsageError
from fp4dit_onnx.runtime import providers
from fp4dit_onnx.runtime.library import Library
from fp4dit_onnx.runtime.providers import ON_CPU, Placement, place
from fp4dit_onnx.runtime.session import session, with_library
from fp4dit_onnx.system.nvidia import Driver, Gpu, nvidia_driver
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.system.shared_objects import missing, needed
from fp4dit_onnx.targets.tiny_model import tiny_linear

verifying: Any = importlib.import_module("fp4dit_onnx.verification.verify")

CUDA = "CUDAExecutionProvider"
ON_GPU = Placement("cuda:0", ((CUDA, {}), (providers.CPU_PROVIDER, {})), ("cuda", 0))


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return FakeDriver(tmp_path, monkeypatch)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> FakeDriver:
    """An ONNX Runtime that says that it has the CUDA provider, for CUDA 13, and a driver."""
    listed = [CUDA, providers.CPU_PROVIDER]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    state = SimpleNamespace(**vars(onnxruntime_inference_collection.C))
    state.get_available_providers = lambda: listed
    monkeypatch.setattr(onnxruntime_inference_collection, "C", state)
    monkeypatch.setattr(build_and_package_info, "cuda_version", "13.0", raising=False)
    return driver


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save_model(tiny_linear(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    "name", ["gpu", "CUDA", "cuda:", "cuda:-1", "cpu:1", "cuda:0001", "", ","]
)
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown device .*: expected auto, cpu, .*cuda"):
        place(name)


def test_the_driver_is_asked(driver: FakeDriver) -> None:
    driver(cuda=12040, gpus=2, capability=89)
    assert nvidia_driver() == Driver((12, 4), (Gpu("Fake 1", (8, 9), 8 << 30),) * 2)
    assert "cuda:1 Fake 1, sm_89, 8.0 GiB" in str(nvidia_driver())


REFUSED: dict[str, tuple[str, dict[str, int], str]] = {
    "no GPU": ("cuda", {"code": 100}, "finds no GPU: check  nvidia-smi"),
    "none counted": ("cuda", {"gpus": 0}, "finds no GPU: check  nvidia-smi"),
    "updated driver": ("cuda", {"code": 803}, "different versions: restart the machine"),
    "unknown code": ("cuda", {"code": 999}, "CUDA error 999: check"),
    "number": (
        "cuda:2",
        {"gpus": 2},
        r"device cuda:2: this machine has cuda:0 .*, cuda:1 .*choose",
    ),
    "old GPU": ("cuda", {"capability": 61}, r"Fake 1 is sm_61, older than sm_75: .*--device cpu"),
    "old driver": (
        "cuda",
        {"cuda": 12040},
        r"runs CUDA up to 12\.4, and .*for CUDA 13: update .*580.*'onnxruntime-gpu<1\.27'",
    ),
    "one of two": (
        "cuda,openvino",
        {},
        "device openvino: .*has no OpenVINOExecutionProvider.*pip",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_keeps_cuda_from_running_has_a_cure(case: str, with_cuda: FakeDriver) -> None:
    device, given, message = REFUSED[case]
    with_cuda(**given)
    with pytest.raises(UsageError, match=message) as caught:
        place(device)
    assert "\n" not in str(caught.value)
    if case not in ("number", "one of two"):
        with pytest.warns(RuntimeWarning, match="device auto: the CPU runs the models"):
            assert place("auto").on_cpu


def test_a_gpu_that_can_be_used_is_taken(with_cuda: FakeDriver) -> None:
    with_cuda(gpus=2)
    assert place("auto").name == "cuda:0"
    found = place("cuda:1")
    assert found.providers[0] == (CUDA, {"use_tf32": "0", "device_id": "1"})
    assert found.providers[-1][0] == providers.CPU_PROVIDER
    assert found.memory == ("cuda", 1)


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fp4dit_onnx.system.nvidia.DRIVER", str(tmp_path / "libabsent.so"))
    with pytest.raises(UsageError, match=r"there is no NVIDIA driver .*install"):
        place("cuda")


def test_a_runtime_without_the_provider(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is there, and ONNX Runtime is one for CPUs: `doctor` says so too."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [providers.CPU_PROVIDER])
    with pytest.raises(UsageError, match=rf"has no {CUDA}: run  pip uninstall .*cuda,cudnn"):
        place("cuda")
    finding = doctor.CHECKS["devices"]("devices")
    assert not finding.ok
    assert (CUDA in finding.cause, "pip install" in finding.cure) == (True, True)
    monkeypatch.setattr(providers, "version", lambda package: "1.31.1")
    with pytest.raises(UsageError, match="installed beside each other: run  pip uninstall"):
        place("cuda")


def test_missing_libraries_are_named(
    with_cuda: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cublas = shared_object(tmp_path / "libcublas.so.13", "int cublas;")
    shared_object(tmp_path / "libonnxruntime_providers_cuda.so", "int provider;", cublas)
    cublas.unlink()
    monkeypatch.setattr(providers, "_capi", lambda: tmp_path)
    with pytest.raises(UsageError, match=r"libcublas\.so\.13 cannot be loaded.*cuda,cudnn"):
        place("cuda")
    finding = doctor.CHECKS["devices"]("devices")
    assert (finding.ok, "libcublas.so.13" in finding.cause) == (False, True)


def test_what_a_library_needs(tmp_path: Path) -> None:
    other = shared_object(tmp_path / "libother.so.7", "int other;")
    library = shared_object(tmp_path / "libone.so", "int one;", other)
    assert needed(library)[0] == "libother.so.7"
    assert missing(library) == ["libother.so.7"]
    text = tmp_path / "text"
    text.write_text("no library")
    assert needed(text) == []


def test_a_provider_that_does_not_start(with_cuda: FakeDriver, model: Path) -> None:
    """ONNX Runtime goes on with the CPU alone, and says so in its log only."""
    with pytest.raises(UsageError, match=f"could not start {CUDA}: see  fp4dit-onnx doctor"):
        session(model, device="cuda")
    finding = doctor.CHECKS["devices"]("devices")
    assert (finding.ok, finding.found[:4]) == (False, "cpu;")
    assert f"could not start {CUDA}" in finding.cause


def test_auto_says_that_it_took_the_cpu(model: Path) -> None:
    with pytest.warns(RuntimeWarning, match="device auto: the CPU runs the models"):
        found = session(model, device="auto")
    assert found.run(None, {"x": np.ones((3, 32), np.float32)})[0].shape == (3, 4)


FULL = (
    "[ONNXRuntimeError] : 1 : FAIL : bfc_arena.cc:376 Available memory of 8 is smaller than 9",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc",
    "[ONNXRuntimeError] : 1 : FAIL : CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
)


@pytest.mark.parametrize("said", [*FULL, "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700"])
@pytest.mark.parametrize("when", ["load", "run", "run_with_iobinding"])
def test_memory_that_is_full(
    said: str, when: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    def full(*_: object, **__: object) -> None:
        raise state.RuntimeException(said)

    def made(*_: object, **__: object) -> Any:
        if when == "load":
            full()
        parts: dict[str, Callable[..., Any]] = {"run": full, "run_with_iobinding": full}
        return SimpleNamespace(**parts, get_providers=lambda: [CUDA, providers.CPU_PROVIDER])

    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    expected = OutOfMemoryError if said in FULL else BundleError
    for placed, error in ((ON_GPU, expected), (place("cpu"), BundleError)):
        with pytest.raises(error) as caught:
            getattr(session(model, device=placed, library=False), when)(None, {})
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)


WITH_KERNELS = replace(ON_GPU, kernels=True)


@pytest.mark.parametrize(
    "operators", ["", "FpQuantize,FpLinear", "FpQuantize,FpLinear,FpAttention"]
)
def test_the_library_is_registered_where_it_has_kernels(
    operators: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of those that take the time: with some the tensors of every layer would be copied."""
    monkeypatch.setattr(Library, "gpu_operators", tuple(filter(None, operators.split(","))))
    assert with_library(WITH_KERNELS, None) == operators.endswith("FpAttention")
    assert not with_library(WITH_KERNELS, False)
    assert with_library(ON_CPU, None)
    if operators:
        assert with_library(WITH_KERNELS, True)
    else:
        with pytest.raises(UsageError, match=r"built without kernels for GPUs: .*--no-library"):
            with_library(WITH_KERNELS, True)
    with pytest.raises(UsageError, match=r"has no kernels for it.*--no-library"):
        with_library(ON_GPU, True)


def test_the_library_says_what_it_has_for_gpus() -> None:
    """It was built with the images of the kernels, or without any."""
    images = Path(__file__).parents[1] / "custom_ops" / "gpu" / "driver" / "images.inc"
    found = Library().gpu_operators
    assert ("FpQuantize" in found) == bool(found)
    if not images.exists():
        assert found == ()


COMMANDS = {
    "verify": ("nowhere",),
    "evaluate": ("nowhere",),
    "bench": ("--shape", "2x32x8"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands_refuse_a_device_before_any_work(command: str, run: Run) -> None:
    run(command, *COMMANDS[command], "--device", "cuda").refuses("device cuda:0", "driver")
    run(command, *COMMANDS[command], "--device", "gpu").refuses("unknown device 'gpu'")


def test_evaluate_has_a_device_for_each_runtime(run: Run, demo_bundle: Path) -> None:
    words = ("evaluate", str(demo_bundle), "--float-device", "xpu")
    run(*words).refuses("device xpu: torch", "use --float-device cpu")
    run(*words[:2], "--device", "cuda:1", "--executor", "ray").refuses("expected --device cuda")


PRETEND = Placement("pretend:0", ((providers.CPU_PROVIDER, {}),), ("cpu", 0))
"""A device with a memory of its own, which is the machine's."""


def test_a_benchmark_on_a_device() -> None:
    layer = Formats(group_size=32).layer(8, 32)
    everyone = backends("linear", [PRETEND.name], ["ort-float32", "torch-bf16"], PRETEND)
    settings = Settings(1, 0.0, rounds=1, placed=PRETEND)
    case = LinearCase(3, 32, 8, layer)
    found = run_case(case, everyone, "ort-float32", settings, SilentReporter())
    assert [one.name for one in found.outcomes] == ["fp4dit pretend:0", "ort-float32"]
    assert found.absent == {"torch-bf16": "runs on the CPU, not on pretend:0"}
    assert all(one.sqnr_db is None or one.sqnr_db > 10 for one in found.outcomes)


def test_verify_runs_the_bodies_on_the_device(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, bool]] = []

    class Enough(Exception):  # noqa: N818 - the sessions are all that is looked at
        pass

    def session(path: Path, *, device: Any = "cpu", library: bool = True) -> Any:
        made.append((device, library))
        return SimpleNamespace(run=None)

    def stop(evaluators: object) -> None:
        raise Enough

    monkeypatch.setattr(verifying, "session", session)
    monkeypatch.setattr(verifying._Evaluators, "_simulated", stop)
    with pytest.raises(Enough):
        verifying.verify(demo_bundle, quick=True, device=PRETEND)
    kernels, bodies = ("cpu", True), (PRETEND, False)
    assert made == [kernels, kernels, bodies, kernels, bodies]


def test_generate_names_its_device(demo_bundle: Path, tmp_path: Path, run: Run) -> None:
    picture = tmp_path / "picture.png"
    words = ("generate", str(demo_bundle), "--prompt", "a red apple", "-o", str(picture))
    code, printed, said = run(*words, "--device", "cuda")
    assert (code, printed, picture.exists()) == (2, "", False)
    assert said.startswith("error: device cuda:0: there is no NVIDIA driver")
    assert said.count("\n") == 1
    code, printed, said = run(*words, "--steps", "1", "--device", "auto")
    assert code == 0
    assert "the CPU runs the models" in said
    assert "on cpu by kernels" in printed
