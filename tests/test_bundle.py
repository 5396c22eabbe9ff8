"""Bundles: written whole or not at all, and checked when opened."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Run
from manifests import EMPTY, layer

from fp4dit_onnx.bundle.bundle import MANIFEST, REQUIRED_FILES, Bundle, new_bundle, write_manifest
from fp4dit_onnx.bundle.manifest import Converted, Encoder, Kept, PassNote, Weight, read_manifest
from fp4dit_onnx.errors import BundleError, UsageError

DRAWING = (
    "text_encoder/model.onnx",
    "vae_decoder/model.onnx",
    "tokenizer/tokenizer.json",
    "scheduler/scheduler_config.json",
)
"""What a bundle that generates images has beyond `REQUIRED_FILES`."""


def fill(folder: Path, text: str = "content", further: Sequence[str] = DRAWING) -> None:
    """Write the files of a bundle, each with `text`."""
    for name in (*REQUIRED_FILES, *further):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    write_manifest(folder, EMPTY)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    output = tmp_path / "bundle"
    with new_bundle(output) as folder:
        fill(folder)
    return output


def leftovers(parent: Path) -> list[str]:
    return sorted(p.name for p in parent.iterdir() if p.name.startswith("."))


def test_round_trip(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.check_files(deep=True)
    for path in (
        opened.transformer,
        opened.text_encoder,
        opened.vae_decoder,
        opened.tokenizer,
        opened.scheduler,
        opened.model_index,
    ):
        assert path.read_text() == "content"
    assert opened.manifest.format_version == 1
    assert set(opened.manifest.files) == {*REQUIRED_FILES, *DRAWING}
    assert opened.whole
    assert leftovers(bundle.parent) == []


def test_a_transformer_alone_is_a_bundle_too(tmp_path: Path) -> None:
    fill(tmp_path, further=())
    opened = Bundle.open(tmp_path)
    opened.check_files(deep=True)
    assert not opened.whole
    assert opened.transformer.read_text() == "content"
    fill(tmp_path, further=("vae_decoder/model.onnx",))
    assert Bundle.open(tmp_path).whole


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    row = layer("a", weight_sqnr_db=math.inf, output_sqnr_db=math.nan)
    written = write_manifest(tmp_path, replace(EMPTY, layers=(row,)))
    assert written.layers == (layer("a"),)
    assert read_manifest(tmp_path / MANIFEST) == written


def write_half(output: Path, error: type[BaseException]) -> None:
    with new_bundle(output, overwrite=True) as folder:
        (folder / "half").write_text("written")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "new" / "deep" / "bundle"
    with pytest.raises(error):
        write_half(output, error)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_older_bundle(bundle: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(bundle, RuntimeError)
    Bundle.open(bundle).check_files(deep=True)
    assert leftovers(bundle.parent) == []


def test_overwrite_replaces_every_file(bundle: Path) -> None:
    (bundle / "report.html").write_text("old")
    with new_bundle(bundle, overwrite=True) as folder:
        fill(folder, "newer")
        assert (bundle / "transformer/model.onnx").read_text() == "content"
    assert Bundle.open(bundle).transformer.read_text() == "newer"
    assert not (bundle / "report.html").exists()
    assert leftovers(bundle.parent) == []


def test_bundle_is_not_replaced_unasked(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"is not empty .*--overwrite"), new_bundle(bundle):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(UsageError, match=r"not empty and holds no bundle .found thesis.tex"),
        new_bundle(tmp_path, overwrite),
    ):
        pytest.fail("the body must not run")
    assert (tmp_path / "thesis.tex").exists()


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with new_bundle(tmp_path / "bundle") as folder:
        fill(folder)
    Bundle.open(tmp_path / "bundle")


def test_file_as_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "bundle"):
        with pytest.raises(UsageError, match="is a file"), new_bundle(output, overwrite=True):
            pytest.fail("the body must not run")


@pytest.mark.parametrize("output", ["model", "model/inside", "."])
def test_output_may_not_overlap_the_source(tmp_path: Path, output: str) -> None:
    source = tmp_path / "model"
    source.mkdir()
    with (
        pytest.raises(UsageError, match="overlaps the source"),
        new_bundle(tmp_path / output, overwrite=True, source=source),
    ):
        pytest.fail("the body must not run")


def finished_pid() -> int:
    """The number of a process that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_leftovers_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    dead, alive = finished_pid(), os.getppid()
    for pid in (dead, alive):
        (tmp_path / f".bundle.partial-{pid}-0123abcd").mkdir()
    (tmp_path / f".other.partial-{dead}-0123abcd").mkdir()
    with new_bundle(tmp_path / "bundle") as folder:
        fill(folder)
    kept = [f".bundle.partial-{alive}-0123abcd", f".other.partial-{dead}-0123abcd"]
    assert leftovers(tmp_path) == sorted(kept)


def test_bundle_set_aside_by_a_killed_process_is_put_back(bundle: Path) -> None:
    bundle.rename(bundle.parent / f".bundle.old-{finished_pid()}-0123abcd")
    with pytest.raises(UsageError, match="--overwrite"), new_bundle(bundle):
        pytest.fail("the body must not run")
    Bundle.open(bundle).check_files(deep=True)


def test_killed_process_leaves_no_output(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    code = (
        "import sys, time; from pathlib import Path; from fp4dit_onnx.bundle.bundle import new_bundle\n"
        "with new_bundle(Path(sys.argv[1])) as f: (f / 'x').write_text(''); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", code, str(output)]) as process:
        deadline = time.monotonic() + 20
        while len(leftovers(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert len(leftovers(tmp_path)) == 2  # its lock too
    assert not output.exists()
    with new_bundle(output) as folder:
        fill(folder)
    assert leftovers(tmp_path) == []


def change_manifest(bundle: Path, **changes: object) -> None:
    content = json.loads((bundle / MANIFEST).read_text())
    content.update(changes)
    (bundle / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2: this program reads 1"),
        ({"layers": None}, "layers is null, expected a list"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "lies outside the bundle"),
        ({"files": {"/x": {"bytes": 1, "sha256": ""}}}, "lies outside the bundle"),
        ({"files": {"x": {"bytes": "1"}}}, "files.x.sha256 is absent"),
        ({"files": {"x": {"bytes": 1, "sha256": ""}}}, "x not found"),
    ],
)
def test_bad_manifest(bundle: Path, changes: dict[str, object], message: str) -> None:
    change_manifest(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", [*REQUIRED_FILES, *DRAWING])
def test_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} not found"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_file_of_every_bundle_is_missed_though_no_manifest_lists_it(
    bundle: Path, name: str
) -> None:
    (bundle / name).unlink()
    write_manifest(bundle, EMPTY)
    with pytest.raises(BundleError, match=f"{name} not found: every bundle has it"):
        Bundle.open(bundle)


def test_changed_size_is_seen_on_opening(bundle: Path) -> None:
    (bundle / "transformer/model.onnx").write_text("shorter"[:3])
    with pytest.raises(BundleError, match=r"has 3 bytes, quantization.json says 7"):
        Bundle.open(bundle)


def test_changed_content_is_seen_by_the_deep_check_alone(bundle: Path) -> None:
    (bundle / "transformer/model.onnx").write_text("CONTENT")
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match="has sha256"):
        opened.check_files(deep=True)


def test_what_is_no_bundle(tmp_path: Path, demo_folder: Path) -> None:
    with pytest.raises(BundleError, match="not found"):
        Bundle.open(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"has no quantization.json"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match=r"unquantized pipeline.*fp4dit-onnx export"):
        Bundle.open(demo_folder)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(tmp_path / MANIFEST)
    with pytest.raises(BundleError, match="is not JSON"):
        Bundle.open(tmp_path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda folder: (folder / "transformer/model.onnx").unlink(),
        "transformer/model.onnx not found",
    ),
    "cut": (
        lambda folder: os.truncate(folder / "vae_decoder/model.onnx", 3),
        "vae_decoder/model.onnx has 3 bytes, quantization.json says 7",
    ),
    "version": (
        lambda folder: change_manifest(folder, format_version=2),
        "quantization.json has format_version 2: this program reads 1",
    ),
    "manifest": (
        lambda folder: (folder / MANIFEST).write_text("{"),
        "quantization.json is not JSON",
    ),
}
"""What may happen to a bundle, and what every command says then."""


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["generate", "inspect", "verify", "view"])
def test_commands_name_the_damage(bundle: Path, command: str, damage: str, run: Run) -> None:
    further = {
        "generate": ["--prompt", "red apple", "--output", bundle / "apple.png"],
        "view": ["--no-browser"],
    }
    change, message = DAMAGE[damage]
    change(bundle)
    run(command, bundle, *further.get(command, ())).refuses(message)


def test_commands_on_what_is_no_model(bundle: Path, run: Run) -> None:
    """Its bytes and sha256 are those of the manifest."""
    run("inspect", bundle).refuses("transformer/model.onnx is not an ONNX model")


def test_verify_names_what_was_altered(bundle: Path, run: Run) -> None:
    (bundle / "transformer/model.onnx").write_text("CONTENT")
    run("verify", bundle).refuses("transformer/model.onnx has sha256")


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every entry of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    for key, item in inner:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


@pytest.mark.parametrize("value", [None, -1, True, "x", [], {}, 2**70, 1e300, [[]]], ids=repr)
def test_a_manifest_with_another_value_at_any_key(tmp_path: Path, value: object) -> None:
    """It opens, or is refused in one line that names the file."""
    fill(tmp_path)
    row = layer("blocks.0.to_q", weight_sqnr_db=18.0)
    encoder = Encoder("T5EncoderModel", EMPTY.recipe, {"a": Weight((2, 2), 2, 16)}, 18.0)
    full = replace(
        EMPTY,
        layers=(row,),
        skipped=(Kept("proj_out", "by rule"),),
        passes=(PassNote("fuse", 1, (Kept("a", "b"),)),),
        text_encoders={"text_encoder": encoder},
        converted={"transformer": Converted(3)},
        attention={"blocks.0": "e2m3"},
        case_sqnr_db=(20.0,),
        versions={"python": "3.11"},
    )
    write_manifest(tmp_path, full)
    path = tmp_path / MANIFEST
    content = json.loads(path.read_text())
    refused = []
    for place in list(places(content)):
        changed = json.loads(path.read_text())
        target = changed
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        path.write_text(json.dumps(changed))
        try:
            Bundle.open(tmp_path)
        except BundleError as error:
            refused.append(str(error))
        path.write_text(json.dumps(content))
    assert len(refused) > len(list(places(content))) / 2
    assert all((MANIFEST in line and "\n" not in line) or "not found" in line for line in refused)
    assert read_manifest(path) == replace(full, files=Bundle.open(tmp_path).manifest.files)


def test_a_manifest_of_the_version_before_opens(tmp_path: Path) -> None:
    """It had no formats of scales, no largest size, and a target only if it was converted."""
    fill(tmp_path)
    write_manifest(tmp_path, replace(EMPTY, layers=(layer("blocks.0.to_q"),)))
    content = json.loads((tmp_path / MANIFEST).read_text())
    for key in ("largest_size", "target", "converted", "text_encoders", "resources", "method"):
        del content[key]
    del content["recipe"]["scale"], content["layers"][0]["scale_format"]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    opened = Bundle.open(tmp_path).manifest
    assert (opened.target, opened.recipe.scale, opened.layers) == (
        "fp4dit",
        "float16",
        (layer("blocks.0.to_q"),),
    )
