"""What docs/adding-a-format.md, adding-a-pass.md, -kernel.md and adding-an-operator.md tell to do works.

Their Python runs in tests/test_docs.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import generate_formats
import numpy as np
import onnx
import pytest

from fp4dit_onnx.calibration.draft import Draft
from fp4dit_onnx.calibration.stages import STAGES, Evidence, LayerStage
from fp4dit_onnx.errors import BundleError, UsageError
from fp4dit_onnx.numbers.formats import FORMATS, FloatFormat
from fp4dit_onnx.spec.hadamard import Hadamard
from fp4dit_onnx.spec.state import load_state
from fp4dit_onnx.spec.transform import Transform
from fp4dit_onnx.spec.transforms import TRANSFORMS
from fp4dit_onnx.system.silence import quiet

ROOT = Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CXX", "c++")
WARNINGS = ["-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Werror"]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def compile_only(source: Path, *options: str) -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"needs a C++ compiler: {COMPILER}")
    command = [COMPILER, *WARNINGS, "-c", "-o", os.devnull, *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_format_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's format, in copies of the files that the page names."""
    text = page("adding-a-format.md")
    found = re.search(r'FloatFormat\("(\w+)", exponent_bits=(\d), mantissa_bits=(\d)\)', text)
    assert found
    name, exponent, mantissa = found.groups()
    assert name not in FORMATS
    formats = (ROOT / "fp4dit_onnx" / "numbers" / "formats.py").read_text(encoding="utf-8")
    first = '        FloatFormat("e2m1", 2, 1),\n'
    line = f'        FloatFormat("{name}", {exponent}, {mantissa}),\n'
    assert first in formats
    module = types.ModuleType("formats_with_one_more")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(formats.replace(first, first + line), module.__dict__)

    copy = Path(shutil.copytree(ROOT / "custom_ops", tmp_path / "custom_ops"))
    monkeypatch.setattr(generate_formats, "FORMATS", module.FORMATS)
    generated = generate_formats.render()
    assert generated != (copy / "core" / "formats.inc").read_text(encoding="utf-8")
    (copy / "core" / "formats.inc").write_text(generated, encoding="utf-8")
    assert f"FP4DIT_FORMAT({name}, 5, 8, 2, 16, 0.0f" in generated
    compile_only(copy / "core" / "formats.cc", f"-I{copy}")


def test_the_table_of_a_kernel_compiles(tmp_path: Path) -> None:
    found = re.search(r"```cpp\n(.*?)```", page("adding-a-kernel.md"), re.DOTALL)
    assert found
    source = tmp_path / "my_set.cc"
    source.write_text(found[1], encoding="utf-8")
    compile_only(source, f"-I{ROOT / 'custom_ops'}")


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("adding-a-format.md", "tests/test_formats.py", "TABLE"),
        ("adding-a-format.md", "tests/test_formats.py", "REFERENCE"),
        ("adding-a-format.md", "fp4dit_onnx/spec/recipe.py", "WEIGHT_FORMATS"),
        ("adding-a-format.md", "fp4dit_onnx/spec/recipe.py", "ACTIVATION_FORMATS"),
        ("adding-a-pass.md", "passes/base.py", "rewrite_all"),
        ("adding-a-pass.md", "passes/pipeline.py", "float_passes"),
        ("adding-a-pass.md", "passes/pipeline.py", "quantize_passes"),
        ("adding-a-pass.md", "tests/conftest.py", "bench"),
        ("adding-an-operator.md", "fp4dit_onnx/ops/table.py", "OPERATORS"),
        ("adding-an-operator.md", "custom_ops/ops/ops.inc", "FP4DIT_OP"),
        ("adding-a-kernel.md", "custom_ops/CMakeLists.txt", "fp4dit_isa"),
        ("adding-a-kernel.md", "custom_ops/cpu/kernels/kernels.inc", "FP4DIT_ISA"),
        ("adding-a-kernel.md", "custom_ops/cpu/kernels/kernels.h", "PanelLayout"),
        ("adding-a-kernel.md", "custom_ops/tests/main.cc", "--random"),
    ],
)
def test_names_that_the_pages_use_exist(name: str, file: str, text: str) -> None:
    assert text in page(name)
    assert text in (ROOT / file).read_text(encoding="utf-8")


def test_a_stage_from_outside_is_one_class_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rounding that no file of the package knows, named in a user's recipe, is exported."""
    pytest.importorskip("onnx_graphsurgeon")
    from fp4dit_onnx.calibration.rounding import packed, round_to_nearest

    @dataclass(frozen=True)
    class Halved(LayerStage):
        """Rounds half of each weight."""

        kind: ClassVar[str] = "rounding"
        share: float = 0.5

        def layer(self, draft: Draft, evidence: Evidence) -> Draft:
            spec, scale = draft.spec, draft.scale
            assert scale is not None
            weight = draft.weight * self.share
            q = round_to_nearest(weight, scale, spec.weight_format, spec.group_size)
            return replace(draft, codes=packed(q, spec.weight_format))

    monkeypatch.setitem(STAGES, "halved", Halved)
    recipe = tmp_path / "halved.toml"
    recipe.write_text('extends = "fp-rtn"\nstage = [{ use = "absmax" }, { use = "halved" }]\n')
    made = exported(tmp_path / "bundle", method="fp4dit", recipe=recipe)
    assert made.manifest.method["stage"][1] == {"use": "halved", "share": 0.5}
    rows = made.manifest.layers
    assert all(5 < (row.weight_sqnr_db or 0) < 7 for row in rows), "half of a signal is lost: 6 dB"


def exported(output: Path, **changes: object) -> Any:
    """The demo's transformer, rounded to nearest without anything measured."""
    pytest.importorskip("onnx_graphsurgeon")
    from fp4dit_onnx.exporting.export import ExportRequest, export

    settings: dict[str, Any] = {"method": "fp-rtn", "components": "transformer", **changes}
    return export(ExportRequest(output, measure=False, report=False, **settings))


def test_a_format_from_outside_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library does not know it; the function bodies do."""
    from fp4dit_onnx.bundle.bundle import Bundle
    from fp4dit_onnx.runtime.session import session

    monkeypatch.setitem(FORMATS, "e2m2", FloatFormat("e2m2", exponent_bits=2, mantissa_bits=2))
    made = exported(tmp_path / "bundle", rules=("transformer_blocks.0.*=e2m2",))
    kept: dict[str, list[float]] = {"e2m1": [], "e2m2": []}
    for row in made.manifest.layers:
        kept.setdefault(row.weight_format, []).append(row.weight_sqnr_db or 0)
    assert min(kept["e2m2"]) > max(kept["e2m1"]) + 3  # a bit more is 6 dB less the larger steps
    assert session(Bundle.open(made.bundle).transformer, library=False).get_outputs()
    with pytest.raises(BundleError, match="'e2m2', wanted one of e2m1"):
        session(Bundle.open(made.bundle).transformer)


def test_a_pass_from_outside_is_one_class_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's pass, in an export."""
    pytest.importorskip("onnx_graphsurgeon")
    from fp4dit_onnx.passes import pipeline

    module = types.ModuleType("drop_same_cast")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = re.search(r"```python\n(.*?)```", page("adding-a-pass.md"), re.DOTALL)
    assert text
    exec(text[1], module.__dict__)
    own = pipeline.float_passes
    monkeypatch.setattr(pipeline, "float_passes", lambda p: (*own(p), module.DropSameCast()))
    made = exported(tmp_path / "bundle")
    assert "drop_same_cast" in [one.name for one in made.manifest.passes]


def test_an_operator_from_outside_is_one_record(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's record and pass, in a bundle that is verified, noted on and inspected."""
    pytest.importorskip("onnx_graphsurgeon")
    from fp4dit_onnx import ops
    from fp4dit_onnx.bundle.annotation import annotate
    from fp4dit_onnx.bundle.bundle import write_manifest
    from fp4dit_onnx.bundle.manifest import read_manifest
    from fp4dit_onnx.passes.pipeline import run_passes
    from fp4dit_onnx.report.inspection import inspect_bundle
    from fp4dit_onnx.verification.verify import verify

    code: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page("adding-an-operator.md"), re.DOTALL):
        exec(compile(block, "adding-an-operator.md", "exec"), code)
    record = code["LIMIT"]
    monkeypatch.setitem(ops.OPERATORS, record.name, record)
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    path = folder / "transformer" / "model.onnx"
    manifest = read_manifest(folder / "quantization.json")
    model, (report,) = run_passes(onnx.load(path), [code["LimitActivations"](1e6)])
    annotate(model, {row.name: row for row in manifest.layers}, {})
    count = sum(node.op_type in ops.QUANTIZE_OPS for node in model.graph.node)
    assert report.rewritten == count > 0
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")
    write_manifest(folder, manifest)

    checked = verify(folder, quick=True)
    assert checked.ok, [c for c in checked.checks if not c.ok]
    listed = {
        o["operator"]: o["count"] for o in inspect_bundle(folder)["transformer"]["operators"]
    }
    assert listed["FpLimit"] == count
    notes = {n.doc_string for n in model.graph.node if n.op_type == record.name}
    assert notes == {"Activations, at most 1e+06"}

    wrong = replace(record, reference=lambda given, inputs: (-inputs[0],))
    monkeypatch.setitem(ops.OPERATORS, record.name, wrong)
    failed = [c for c in verify(folder, quick=True).checks if not c.ok]
    first = next(n.name for n in model.graph.node if n.op_type == record.name)
    assert len(failed) == 3
    assert all(f"first at node {first}" in c.detail for c in failed)


@dataclass(frozen=True)
class Doubled(Transform):
    """Every n-th input counts twice, and its weights half: no rotation."""

    name: ClassVar[str] = "doubled"
    operator: ClassVar[str] = "FpDouble"
    every: int = 2

    def __call__(self, x: Any, library: Any = np) -> Any:
        """See `Transform`."""
        return x * self._factor(x, 2.0, library)

    def of_weight(self, weight: Any, library: Any = np) -> Any:
        """See `Transform`."""
        return weight * self._factor(weight, 0.5, library)

    def _factor(self, x: Any, factor: float, library: Any) -> Any:
        hit = library.arange(x.shape[-1]) % self.every == 0
        return library.asarray(library.where(hit, factor, 1.0), dtype=x.dtype)


FP_DOUBLE = """
FpDouble <every> (x) => (y) {
    size = Constant <value_int: int = @every> ()
    zero = Constant <value = int64 {0}> ()
    one = Constant <value = int64 {1}> ()
    once = Constant <value = float {1.0}> ()
    twice = Constant <value = float {2.0}> ()
    last_dim = Shape <start = -1> (x)
    columns = Squeeze (last_dim)
    index = Range (zero, columns, one)
    rest = Mod (index, size)
    hit = Equal (rest, zero)
    factor = Where (hit, twice, once)
    y = Mul (x, factor)
}
"""


def test_a_transform_from_outside_is_one_record_and_one_line(
    demo_bundle: Path, demo_feed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rotation, with its operator's body: exported, verified in torch, read back, run."""
    pytest.importorskip("onnx_graphsurgeon")
    from fp4dit_onnx import ops
    from fp4dit_onnx.bundle.bundle import Bundle
    from fp4dit_onnx.bundle.probe import load_model, read_state
    from fp4dit_onnx.calibration.transforming import transformed_weight
    from fp4dit_onnx.numbers.compare import sqnr_db
    from fp4dit_onnx.runtime.session import session
    from fp4dit_onnx.verification.verify import verify

    both = (Hadamard(8), Doubled(3))

    class Always(LayerStage):
        """In place of the stage that measures whether it is worth it."""

        kind: ClassVar[str] = "transform"

        def layer(self, draft: Draft, evidence: Evidence) -> Draft:
            weight = transformed_weight(draft.weight, both)
            return replace(draft, spec=replace(draft.spec, input_ops=both), weight=weight)

    monkeypatch.setitem(STAGES, "always", dataclass(frozen=True)(Always))
    record = ops.Operator(
        name=Doubled.operator,
        text=FP_DOUBLE,
        doc="x, every n-th element twice.",
        results=(np.float32,),
        reference=lambda given, inputs: (Doubled.of_node(given)(inputs[0]),),
        caption=lambda given, size: f"Activations, one in {given['every']} doubled",
        shared=True,
    )
    monkeypatch.setitem(ops.OPERATORS, record.name, record)
    monkeypatch.setitem(TRANSFORMS, Doubled.name, Doubled)  # the line
    recipe, state = tmp_path / "doubled.toml", tmp_path / "state.safetensors"
    stages = ", ".join(f'{{ use = "{name}" }}' for name in ("always", "absmax", "nearest"))
    recipe.write_text(f'extends = "fp-rtn"\nstage = [{stages}]\n')
    made = exported(tmp_path / "bundle", method="fp4dit", recipe=recipe, state=state)

    rows = made.manifest.layers
    assert {row.input_ops for row in rows} == {both}
    assert all((row.weight_sqnr_db or 0) > 10 for row in rows), "of the weight that it makes"
    stored = json.loads((made.bundle / "quantization.json").read_bytes())["layers"][0]
    assert (stored["hadamard"], stored["doubled"]) == (8, 3)
    path = Bundle.open(made.bundle).transformer
    found, kept = read_state(load_model(path)).layers, load_state(state).layers
    assert {layer.spec.input_ops for layer in (*found.values(), *kept.values())} == {both}
    checked = verify(made.bundle, quick=True)
    assert checked.ok, [c for c in checked.checks if not c.ok]
    plain = session(Bundle.open(demo_bundle).transformer).run(None, demo_feed)[0]
    (output,) = session(path, library=False).run(None, demo_feed)
    assert sqnr_db(plain, output) > 10, "as without it, but for rounding"

    monkeypatch.delitem(TRANSFORMS, Doubled.name)
    with pytest.raises(UsageError, match="has 'doubled', which this version lacks"):
        load_state(state)


def test_a_family_from_outside_is_one_record_and_one_line(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its twin is exported block by block and verified, and the page's JSON has it."""
    pytest.importorskip("diffusers")
    import diffusers
    import generate_families
    from cogview3 import COGVIEW3, TWIN

    from fp4dit_onnx.families import FAMILIES
    from fp4dit_onnx.verification.verify import verify

    FAMILIES.append(COGVIEW3)  # the line
    request.addfinalizer(FAMILIES.pop)
    with quiet():
        network = diffusers.CogView3PlusTransformer2DModel(**TWIN)
        network.save_pretrained(tmp_path / "twin" / "transformer")
    index = {
        "_class_name": COGVIEW3.pipelines[0],
        "transformer": ["diffusers", COGVIEW3.transformer],
    }
    (tmp_path / "twin" / "model_index.json").write_text(json.dumps(index))
    made = exported(tmp_path / "bundle", model=tmp_path / "twin")
    linears = {n for n, m in network.named_modules() if type(m).__name__ == "Linear"}
    assert {row.name for row in made.manifest.layers} == linears
    assert verify(made.bundle, quick=True).ok
    known = {family["name"]: family for family in json.loads(generate_families.render())}
    assert known[COGVIEW3.name]["encoders"] == ["text_encoder"]
