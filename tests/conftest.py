"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

# Threads of torch wait busily for each other, which is slow where tests share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest
from command_line import Outcome, Run
from manifests import EMPTY
from needs import absent
from pass_bench import PassBench

from fp4dit_onnx import cli
from fp4dit_onnx.bundle.bundle import write_manifest
from fp4dit_onnx.bundle.skeleton import Traced
from fp4dit_onnx.checkpoint.checkpoint import Checkpoint, open_checkpoint
from fp4dit_onnx.checkpoint.checkpoint import demo_folder as embedded_folder
from fp4dit_onnx.commands.output import Messages, configure
from fp4dit_onnx.families import Family, family_of
from fp4dit_onnx.numbers.compare import within
from fp4dit_onnx.ops import IR_VERSION, OPSET
from fp4dit_onnx.runtime import Sampling
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.system.resources import Resources
from fp4dit_onnx.system.silence import quiet

# Begun in the background, as with nohup, a process ignores SIGINT, and so would commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

Array = npt.NDArray[Any]


LONGEST = (
    *("test_model_table", "test_native", "test_export", "test_cpp_example", "test_hostile"),
    *("test_export_streaming", "test_targets", "test_calibration_families", "test_components"),
    *("test_blockwise_families", "test_generate_families", "test_killed", "test_train_demo"),
    "test_ray",
    "test_wheel",
)
"""Files that take longest. They start first, so that no process is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with `LONGEST`."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The embedded demo pipeline; not to be changed."""
    return embedded_folder()


@pytest.fixture
def demo_copy(demo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the embedded demo pipeline, to be damaged."""
    return shutil.copytree(demo_folder, tmp_path / "pipeline")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command, or a tool by its `main`, in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*words: object, main: Callable[[list[str]], Any] = cli.main) -> Outcome:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        return Outcome(int(left.value.code or 0), *capsys.readouterr())

    yield call
    configure(Messages())  # a command's --quiet is for the rest of its process
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A model of one FpQuantize and one FpLinear [M, 32] -> [M, 4]."""
    from fp4dit_onnx.targets.tiny_model import tiny_linear

    path = tmp_path / "model.onnx"
    onnx.save_model(tiny_linear(), path)
    return path


@pytest.fixture(scope="session")
def emulated_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GPU's kernels on an emulated GPU: alone in its folder, under the name of NVIDIA's driver."""
    from emulated_gpu import compile_kernels

    return compile_kernels(tmp_path_factory.mktemp("gpu") / "libcuda.so.1")


@pytest.fixture
def bench() -> PassBench:
    """Runs passes on small graphs; needs the packages of the extra ``export``."""
    pytest.importorskip("onnx_graphsurgeon")
    return PassBench()


@pytest.fixture(scope="session")
def tiny_pixart() -> Callable[..., Any]:
    """Makes a PixArt transformer of two blocks of width 32 with random weights, in eval mode."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("diffusers.models.transformers")

    def make(**changes: Any) -> Any:
        config = {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 8,
            "patch_size": 2,
            "use_additional_conditions": False,
        }
        torch.manual_seed(0)
        network = transformers.PixArtTransformer2DModel(**{**config, **changes})
        return network.eval().requires_grad_(requires_grad=False)

    return make


@dataclass(frozen=True)
class TracedTwin:
    """A small pipeline's transformer with random weights, and what tracing makes of it.

    Attributes:
        checkpoint: of the transformer alone.
        family: its family.
        network: without weights.
        traced: the graphs; not to be changed.
    """

    checkpoint: Checkpoint
    family: Family
    network: Any
    traced: Traced

    def torch_network(self) -> Any:
        """The network of diffusers, with weights, in evaluation mode."""
        import diffusers

        cls = getattr(diffusers, self.family.transformer)
        with quiet():
            loaded = cls.from_pretrained(self.checkpoint.folder / "transformer")
        return loaded.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def traced_twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TracedTwin]:
    """Makes and traces the twin of an official model's transformer, each once."""
    for package in ("diffusers", "onnx_graphsurgeon"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("twins")

    def make(name: str) -> TracedTwin:
        from random_pipeline import make as make_pipeline

        from fp4dit_onnx.network.networks import fake_transformer
        from fp4dit_onnx.tracing.trace import trace

        make_pipeline(name, folder / name, twin=True, components=("transformer",))
        checkpoint = open_checkpoint(folder / name, only=("transformer",))
        family = family_of(checkpoint.pipeline_class, checkpoint.transformer_class)
        network = fake_transformer(family.transformer, checkpoint.transformer_config)
        interface = family.interface(network.config)
        traced = trace(network.module, interface, network.config, network.mode)
        return TracedTwin(checkpoint, family, network, traced)

    return cache(make)


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Makes the `twins.Twin` of an official model's transformer, each once."""
    pytest.importorskip("diffusers")
    from twins import make_twin

    return cache(lambda name: make_twin(name, tmp_path_factory.mktemp("twins") / name))


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """For tests that change the number of torch's threads."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def torch_pipeline(demo_folder: Path) -> Any:
    """The demo pipeline in diffusers."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third parties' deprecations at import
        diffusers = pytest.importorskip("diffusers")
    with quiet():
        loaded = diffusers.PixArtAlphaPipeline.from_pretrained(
            demo_folder, torch_dtype=torch.float32, local_files_only=True
        )
    loaded.set_progress_bar_config(disable=True)
    return loaded


TRANSFORMER_FORMULA = """
<ir_version: {ir}, opset_import: ["": {opset}]>
fake (float[batch, 4, height, width] hidden_states, float[batch, text, 128] encoder_hidden_states,
      float[batch] timestep, int64[batch, text] encoder_attention_mask)
  => (float[batch, 8, height, width] sample)
{{
    hundredth = Constant <value_float = 0.01> ()
    text_axes = Constant <value_ints = [1, 2]> ()
    space = Constant <value_ints = [1, 2, 3]> ()
    last = Constant <value_ints = [2]> ()
    weight = Cast <to = 1> (encoder_attention_mask)
    column = Unsqueeze (weight, last)
    words = Mul (encoder_hidden_states, column)
    meaning = ReduceSum <keepdims = 0> (words, text_axes)
    shift = Unsqueeze (meaning, space)
    time = Unsqueeze (timestep, space)
    bent = Tanh (hidden_states)
    small_time = Mul (time, hundredth)
    phase = Sin (small_time)
    small_shift = Mul (shift, hundredth)
    product = Mul (bent, phase)
    predicted = Add (product, small_shift)
    sample = Concat <axis = 1> (predicted, hidden_states)
}}
"""


@pytest.fixture(scope="session")
def bundle(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pipeline as a bundle, with a transformer that is a small formula."""
    from fp4dit_onnx.exporting.component_writing import ComponentWriter
    from fp4dit_onnx.exporting.components import copy_settings, write_vae
    from fp4dit_onnx.exporting.text_encoders import write_encoder

    folder = tmp_path_factory.mktemp("runtime") / "bundle"
    folder.mkdir()
    checkpoint = open_checkpoint(demo_folder)
    writer = ComponentWriter(folder, None, "fused", SilentReporter(), Resources())
    write_encoder(checkpoint.components["text_encoder"], None, "absmax", writer)
    write_vae(checkpoint.components["vae"], writer)
    copy_settings(checkpoint, folder)
    text = TRANSFORMER_FORMULA.format(ir=IR_VERSION, opset=OPSET)
    onnx.save(onnx.parser.parse_model(text), folder / "transformer" / "model.onnx")
    sampling = Sampling(steps=20, guidance=3.0, height=64, width=64, max_sequence_length=16)
    write_manifest(folder, replace(EMPTY, sampling=sampling))
    return folder


@pytest.fixture(scope="session")
def drawable(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes whole bundles of the demo pipeline, rounded to nearest, by bits; not to be changed.

    Further arguments are of `ExportRequest`.

    Weights of w4a16 are all e1m2, of which a grid integer is 4 bits; others are the paper's.
    """
    from fp4dit_onnx.exporting.export import ExportRequest, export
    from fp4dit_onnx.runtime.step_table import write_step_table

    @cache
    def make(bits: str, **more: Any) -> Path:
        part = tmp_path_factory.mktemp("drawable") / "part"
        request = ExportRequest(
            output=part,
            bits=bits,
            weight_format="e1m2" if bits == "w4a16" else None,
            method="fp-rtn",
            components="transformer",
            measure=False,
            report=False,
            **more,
        )
        manifest = export(request).manifest
        folder = shutil.copytree(bundle, part.with_name(bits))
        shutil.rmtree(folder / "transformer")
        shutil.move(part / "transformer", folder / "transformer")
        write_step_table(folder, manifest.sampling.steps)
        write_manifest(folder, manifest)
        return Path(folder)

    return make


@pytest.fixture(scope="session")
def demo_bundle(drawable: Callable[..., Path]) -> Path:
    """The demo pipeline as a w4a6 bundle, rounded to nearest; not to be changed."""
    return drawable("w4a6")


@pytest.fixture
def demo_feed() -> dict[str, Array]:
    """Inputs of the demo's transformer: two images, five tokens."""
    rng = np.random.default_rng(0)
    return {
        "hidden_states": rng.standard_normal((2, 4, 8, 8)).astype(np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 5, 128)).astype(np.float32),
        "timestep": np.full(2, 500, np.float32),
        "encoder_attention_mask": np.ones((2, 5), np.int64),
    }


@pytest.fixture
def agree() -> Callable[[npt.NDArray[Any], npt.NDArray[Any], float], None]:
    """Asserts that an array is the expected one up to a part of the largest expected magnitude."""

    def check(found: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> None:
        comparison = within(found, expected, tolerance * np.abs(expected).max())
        assert comparison.ok, comparison.detail

    return check


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium under Playwright; without it tests are skipped, in CI they fail."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        absent("needs Chromium: install Debian's package chromium")
    if importlib.util.find_spec("playwright") is None:
        absent("needs Playwright: pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--enable-unsafe-webgpu"]
        )
        yield chromium
        chromium.close()
