"""The command line: exit codes, one-line errors, JSON alone on stdout, and what it imports."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import onnx
import pytest
from manifests import EMPTY, layer
from PIL import Image
from rich.console import Console

from fp4dit_onnx import cli, ops
from fp4dit_onnx.bundle.bundle import MANIFEST, Bundle
from fp4dit_onnx.bundle.manifest import Kept
from fp4dit_onnx.calibration.methods import method_names, preset_names, range_names
from fp4dit_onnx.commands import output
from fp4dit_onnx.commands.generate import chosen_seeds, picture_paths
from fp4dit_onnx.commands.layer_table import group_layers
from fp4dit_onnx.commands.parameters import parameters_of
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.numbers.scale_formats import SCALE_FORMATS
from fp4dit_onnx.spec.recipe import FORMS
from fp4dit_onnx.system.progress import RichReporter
from fp4dit_onnx.targets import TARGETS


@pytest.fixture(autouse=True)
def _restore_signal() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@dataclass
class Outcome:
    """Exit code and output of one command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return call


def assert_one_line(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


def test_help_names_every_command(run: Any) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    for name in cli.COMMANDS:
        assert name in outcome.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_line_is_the_docstring(run: Any, name: str) -> None:
    module = importlib.import_module(f"fp4dit_onnx.commands.{name}")
    assert module.run.__doc__ == cli.COMMANDS[name]
    assert run(name, "--help").code == 0


PANELS = {
    "export": ("Arguments", "Input", "Formats", "Calibration", "Output", "Machine"),
    "generate": ("Arguments", "Input", "Sampling", "Output", "Machine"),
}


@pytest.mark.parametrize("name", PANELS)
def test_help_stands_in_panels(run: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = re.findall(r"^╭─ (\w+) ─", run(name, "--help").out, re.MULTILINE)
    assert [panel for panel in found if panel != "Options"] == list(PANELS[name])


def words_of_help(run: Any, name: str) -> str:
    """The help in one line, without frames."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", run(name, "--help").out).split())


def test_help_of_export_has_the_choices_of_the_tables(run: Any) -> None:
    shown = words_of_help(run, "export")
    for table in (
        method_names(),
        preset_names(),
        range_names(),
        SCALE_FORMATS,
        FORMS,
        TARGETS,
        FORMATS,
    ):
        assert ", ".join(table) in shown
    assert "w<4|6|8>a<4|6|8|16|32>" in shown
    assert "--max-ram GiB" in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_prints_brackets(run: Any, name: str) -> None:
    """Every text as it was written: nothing is taken for markup."""
    shown = words_of_help(run, name).replace(" ", "")
    found = [get_args(p.annotation)[1] for p in parameters_of(module_of(name).run)]
    assert found
    for option in found:
        assert option.hidden or option.help.replace(" ", "") in shown


def module_of(name: str) -> Any:
    """A command's module."""
    return importlib.import_module(f"fp4dit_onnx.commands.{name}")


def test_tables_and_lines_print_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table("[bold]a[/bold]", ("[export]", "wide" * 5), [["[report]", ""]])
    output.print_line("pip install 'fp4dit-onnx[export]'")
    RichReporter(Console(force_terminal=True, file=sys.stdout)).note("[view]")
    shown = capsys.readouterr().out
    for text in ("[bold]a[/bold]", "[export]", "[report]", "'fp4dit-onnx[export]'", "[view]"):
        assert text in shown


def completed(words: str) -> list[str]:
    """What bash is offered for the last word."""
    command = [sys.executable, "-P", "-c", "from fp4dit_onnx.cli import main; main()"]
    asked = {
        "_FP4DIT_ONNX_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes(run: Any) -> None:
    assert completed("fp4dit-onnx ev") == ["evaluate"]
    assert completed("fp4dit-onnx generate --negative") == ["--negative-prompt"]
    assert completed("fp4dit-onnx export --method int-") == ["int-adaround", "int-rtn"]
    assert "--install-completion" in run("--help").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], ("BUNDLE", "fp4dit-onnx generate --help")),
        (["exprot"], ("exprot", "export", "--help")),
        (["inspect", "x", "--jsn"], ("--jsn", "--json")),
        (["serve", "x", "--port", "70000"], ("--port", "65535")),
        (["export", "--seed", "x"], ("--seed", "x")),
        (["--log-file", "/nowhere/log", "inspect", "x"], ("/nowhere/log", "--log-file")),
    ],
)
def test_a_wrong_command_is_one_line(
    run: Any, arguments: list[str], words: tuple[str, ...]
) -> None:
    assert_one_line(run(*arguments), *words)


def test_quiet_is_nothing_but_errors_and_json(run: Any, small_model: Path) -> None:
    for arguments in (["--quiet", "inspect", small_model], ["inspect", small_model, "-q"]):
        assert run(*arguments) == Outcome(0, "", "")
    assert json.loads(run("inspect", small_model, "--json", "--quiet").out)["kind"] == "model"
    assert_one_line(run("inspect", "/nowhere", "--quiet"), "/nowhere not found")
    assert run("inspect", small_model).out  # the next run is not quiet


def test_verbose_says_where_an_error_comes_from(run: Any) -> None:
    outcome = run("inspect", "/nowhere", "--verbose")
    assert outcome.code == 2
    assert outcome.err.startswith("Traceback")
    assert outcome.err.splitlines()[-1].startswith("error: /nowhere not found")


def test_the_log_file_has_everything(run: Any, small_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    run("--log-file", log, "inspect", small_model, "--quiet")
    run("inspect", "/nowhere", "--log-file", log)
    text = log.read_text(encoding="utf-8")
    assert "FpLinear" in text
    assert "Traceback" in text
    assert "error: /nowhere not found" in text.splitlines()[-1]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in text.splitlines())
    assert text.count(" given: ") == 2


def test_version(run: Any) -> None:
    assert run("--version").out.startswith("fp4dit-onnx ")


def test_unknown_command(run: Any) -> None:
    assert run("exprot").code == 2


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["inspect", "--help"], ["doctor", "--help"]]
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    heavy = ["torch", "diffusers", "transformers", "onnx_graphsurgeon"]
    code = (
        "import sys, fp4dit_onnx.cli as cli\n"
        f"try: cli.main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"sys.exit(', '.join(m for m in {heavy!r} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_is_fast() -> None:
    start = time.monotonic()
    command = [sys.executable, "-P", "-c", "from fp4dit_onnx.cli import main; main(['--help'])"]
    subprocess.run(command, check=True, capture_output=True)
    assert time.monotonic() - start < 3  # typically 0.2 s; importing torch takes 2 and more


def test_dry_run_prints_sizes_and_writes_nothing(run: Any, tmp_path: Path) -> None:
    outcome = run("export", "--dry-run", "-o", tmp_path / "bundle")
    assert outcome.code == 0
    assert "transformer_blocks.*.attn1.to_q" in outcome.out
    assert "attention: q, k, v of 16 modules in e2m3 per head and token\n" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_as_json(run: Any) -> None:
    content = json.loads(run("export", "--dry-run", "--json").out)
    assert content["totals"]["bits_per_weight"] < 4.3
    assert len(content["layers"]) == content["totals"]["layers"]
    assert set(content["attention"].values()) == {"e2m3"}
    assert content["recipe"]["attention"] == "e2m3"


def test_dry_run_with_attention_in_float(run: Any) -> None:
    assert "attention:" not in run("export", "--dry-run", "--attention-format", "none").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export"], ("no output folder", "-o DIR")),
        (
            ["export", "/nowhere/model", "--dry-run"],
            ("/nowhere/model not found", "check the path"),
        ),
        (["export", "--bits", "w5a6", "--dry-run"], ("w5a6", "expected")),
        (["export", "--bits", "four", "--dry-run"], ("four", "expected")),
        (["export", "--weight-format", "e9m9", "--dry-run"], ("e9m9", "e2m1")),
        (["export", "--attention-format", "e2m1", "--dry-run"], ("attention", "e2m1", "6")),
        (["export", "--rule", "nothing.*=e2m1", "--dry-run"], ("nothing.*", "matches none")),
        (["export", "--rule", "nonsense", "--dry-run"], ("nonsense", "PATTERN=FORMAT")),
        (["export", "--form", "flat", "--dry-run"], ("flat", "fused")),
        (["export", "--method", "magic", "--dry-run"], ("magic", "fp4dit", "int-rtn")),
        (["export", "--preset", "quick", "--dry-run"], ("quick", "fast, balanced, best")),
        (["export", "--range", "max", "--dry-run"], ("max", "absmax, mse")),
        (["export", "--iterations", "0", "--dry-run"], ("iterations = 0", "whole number from 1")),
        (["export", "--bits", "w8a8", "--weight-format", "auto", "--dry-run"], ("auto", "w4")),
        (["export", "--prompts", "/nowhere.txt", "--dry-run"], ("/nowhere.txt",)),
        (["generate", "/nowhere", "-o", "x.png"], ("no prompt", "--prompt")),
        (["generate", "/nowhere", "-o", "x.png", "--prompt", "a"], ("/nowhere not found",)),
        (["generate", "/nowhere", "-o", "x.gif", "--prompt", "a"], ("x.gif", ".png")),
        (["evaluate", "/nowhere"], ("/nowhere not found",)),
        (["inspect", "/nowhere"], ("/nowhere not found",)),
    ],
)
def test_bad_input_is_one_line(run: Any, arguments: list[str], words: tuple[str, ...]) -> None:
    assert_one_line(run(*arguments), *words)


def test_export_passes_every_option_on(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def fake(request: Any, reporter: Any) -> Any:
        seen.append(request)
        with reporter.stage("working", 2) as advance:
            advance(2)
        manifest = replace(
            EMPTY, layers=(layer("blocks.0.to_q"),), skipped=(Kept("proj", "by rule"),)
        )
        return command.ExportResult(request.output, manifest, 1.0)

    command: Any = importlib.import_module("fp4dit_onnx.commands.export")
    monkeypatch.setattr(command, "export", fake)
    monkeypatch.setattr(command, "plan", lambda request: request)
    monkeypatch.setattr(command, "better_recipe", lambda planned: None)
    options = "--bits w4a8 --method fp-rtn --weight-format e2m1 --activation-format e3m4 --seed 7"
    options += (
        " --group-size 64 --rule a=e2m1 --rule b=e3m0 --form qdq --prompts p.txt --overwrite"
    )
    options += " --steps 3 --guidance 2.5 --calibration-prompts 5 --attention-format int8"
    options += " --preset best --iterations 9 --samples 40 --range mse --work w --restart"
    options += " --max-ram 0.5"
    outcome = run("export", "model", *options.split(), "-o", tmp_path / "out")
    assert outcome.code == 0
    request = seen[0]
    assert (request.model, request.output) == (Path("model"), tmp_path / "out")
    assert (request.bits, request.form, request.seed) == ("w4a8", "qdq", 7)
    assert request.rules == ("a=e2m1", "b=e3m0")
    assert (request.steps, request.guidance, request.calibration_prompts) == (3, 2.5, 5)
    assert (request.group_size, request.overwrite) == (64, True)
    assert request.prompts == Path("p.txt")
    assert request.attention_format == "int8"
    assert (request.method, request.preset, request.range) == ("fp-rtn", "best", "mse")
    assert (request.iterations, request.samples) == (9, 40)
    assert (request.work, request.restart, request.max_ram) == (Path("w"), True, 2**29)
    assert "blocks.*.to_q" not in outcome.err
    assert "proj" in outcome.out
    run("export", "-o", tmp_path / "out")
    assert seen[1] == command.ExportRequest(output=tmp_path / "out")


def test_json_is_alone_on_stdout(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fake(request: Any, reporter: Any) -> Any:
        reporter.note("a note")
        return command.ExportResult(request.output, {"layers": []}, 1.0)

    command: Any = importlib.import_module("fp4dit_onnx.commands.export")
    monkeypatch.setattr(command, "export", fake)
    outcome = run("export", "--json", "-o", tmp_path)
    assert json.loads(outcome.out)["bundle"] == str(tmp_path)
    assert "a note" in outcome.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (OSError("disk full"), 1), (UsageError("a\nb"), 2)],
)
def test_exit_codes(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(request: Any) -> Any:
        raise error

    command = importlib.import_module("fp4dit_onnx.commands.export")
    monkeypatch.setattr(command, "plan", fail)
    outcome = run("export", "--dry-run")
    assert outcome.code == code
    assert outcome.err.count("\n") == 1


@dataclass
class FakeCheck:
    """Stands for verify.Check."""

    name: str
    ok: bool
    detail: str = "node blocks.3"
    bound: str = "1e-5"
    found: str = "2e-5"


@pytest.mark.parametrize("ok", [True, False])
def test_verify_is_a_gate(run: Any, monkeypatch: pytest.MonkeyPatch, ok: bool) -> None:
    class Verification:
        checks = (FakeCheck("parity", ok),)

        def __init__(self) -> None:
            self.ok = ok

        def to_json(self) -> dict[str, Any]:
            return {"ok": ok}

    fake = ModuleType("fp4dit_onnx.verification.verify")
    fake.verify = lambda **_: Verification()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fp4dit_onnx.verification.verify", fake)
    monkeypatch.delitem(sys.modules, "fp4dit_onnx.commands.verify", raising=False)
    outcome = run("verify", "bundle")
    monkeypatch.delitem(sys.modules, "fp4dit_onnx.commands.verify")
    assert outcome.code == (0 if ok else 1)
    assert "parity" in outcome.out
    assert ("FAILED" in outcome.out) is not ok


def test_picture_paths(tmp_path: Path) -> None:
    one = picture_paths(tmp_path / "a.png", [("x", 0)], overwrite=False)
    assert one == [tmp_path / "a.png"]
    images = [("Red apple!", 0), ("///", 0)]
    several = picture_paths(tmp_path / "folder", images, overwrite=False)
    assert [p.name for p in several] == ["0-red-apple.png", "1-image.png"]
    with pytest.raises(UsageError, match="one file for 2 images: give a folder"):
        picture_paths(tmp_path / "a.png", images, overwrite=False)
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match="exists"):
        picture_paths(tmp_path / "a.png", [("x", 0)], overwrite=False)
    assert picture_paths(tmp_path / "a.png", [("x", 0)], overwrite=True) == one


def test_images_of_several_seeds_are_named_by_seed(tmp_path: Path) -> None:
    images = [(text, seed) for text in ("x", "y", "x") for seed in (9, 10)]
    names = [path.name for path in picture_paths(tmp_path, images, overwrite=False)]
    assert names[:3] == ["0-x-seed-09.png", "0-x-seed-10.png", "1-y-seed-09.png"]
    assert len(set(names)) == 6


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((None, None, None), [0]),
        ((5, None, 3), [5, 6, 7]),
        ((None, "3, 1,2", None), [3, 1, 2]),
        ((None, "3,1", 2), [3, 1]),
    ],
)
def test_seeds(options: tuple[Any, Any, Any], found: list[int]) -> None:
    assert chosen_seeds(*options) == found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((None, "1,x", None), "whole numbers"),
        ((None, "1,", None), "whole numbers"),
        ((None, "-1", None), "whole numbers"),
        ((None, "1,2,1", None), "each once"),
        ((None, "9" * 5000, None), "whole numbers"),
        ((None, "1,18446744073709551616", None), "seed = 18446744073709551616"),
        ((-1, None, None), "seed = -1"),
        ((None, None, 0), "count = 0"),
        ((None, None, 10**12), "count = 1000000000000"),
        ((1, "1,2", None), "--seed and --seeds"),
        ((None, "1,2", 3), "--count 3 with 2 seeds"),
    ],
)
def test_seeds_that_contradict(options: tuple[Any, Any, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen_seeds(*options)


class FakePipeline:
    """Stands for runtime.pipeline.Pipeline: generates grey images."""

    def __init__(self, folder: Path, *, library: bool, threads: int | None) -> None:
        self.steps, self.height, self.width = 2, 8, 8

    def settings(self, **_: object) -> FakePipeline:
        """Itself, as it has what is asked of them."""
        return self

    def generate(self, prompts: list[str], *, progress: Any, **_: object) -> list[Image.Image]:
        """A grey image a prompt."""
        progress(1, 2)
        return [Image.new("RGB", (8, 8), "grey") for _ in prompts]


def test_generate_writes_pictures(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fp4dit_onnx.runtime.pipeline.Pipeline", FakePipeline)
    monkeypatch.setattr(Bundle, "open", lambda folder: Bundle(Path(folder), EMPTY))
    outcome = run(
        "generate", "b", "--prompt", "x", "--prompt", "y", "-o", tmp_path / "o", "--json"
    )
    assert outcome.code == 0
    files = [Path(row["file"]) for row in json.loads(outcome.out)["pictures"]]
    assert sorted(files) == sorted((tmp_path / "o").iterdir())
    with Image.open(files[0]) as picture:
        assert picture.size == (8, 8)


def test_groups_of_layers() -> None:
    rows = [
        layer("blocks.0.to_q", weight_sqnr_db=20.0),
        layer("blocks.1.to_q", weight_sqnr_db=30.0),
        layer("proj", activation_format=None),
    ]
    first, second = group_layers(rows)
    assert (first.name, first.count, first.bytes) == ("blocks.*.to_q", 2, 144)
    names = [group.name for group in group_layers([*rows, layer("adaln.linear")])]
    assert names == ["adaln.linear", "blocks.*.to_q", "proj"]  # sorted
    alone = layer("embedders.2.linear")
    assert [group.name for group in group_layers([alone])] == ["embedders.2.linear"]
    assert (first.weight_sqnr_db, first.output_sqnr_db) == (25.0, None)
    assert second.formats == "e2m1 / float"


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A model of one FpQuantize and one FpLinear [M, 32] -> [M, 4]."""
    from fp4dit_onnx.targets.tiny_model import tiny_linear

    path = tmp_path / "model.onnx"
    onnx.save_model(tiny_linear(), path)
    return path


def test_inspect_model(run: Any, small_model: Path) -> None:
    facts = json.loads(run("inspect", small_model, "--json").out)
    assert facts["kind"] == "model"
    assert facts["opsets"] == {"ai.onnx": ops.OPSET, ops.DOMAIN: ops.VERSION}
    assert facts["inputs"] == [{"name": "x", "dtype": "float", "shape": ["m", 32]}]
    assert facts["bytes"] == {"packed codes": 64, "weight scales": 8, "float": 16}
    assert facts["without_function"] == []
    nodes = {f["name"]: f["nodes"] for f in facts["functions"]}
    assert facts["expanded_nodes"] == sum(nodes.values()) + nodes["FpDequantize"]  # called twice
    (layer,) = facts["layers"]
    assert (layer["weight_format"], layer["activation_format"]) == ("e2m1", "e2m3")
    assert (layer["shape"], layer["group_size"]) == ([4, 32], 32)
    assert "FpLinear" in run("inspect", small_model).out


def test_inspect_shows_text_of_an_attribute_that_is_not_utf8(run: Any, small_model: Path) -> None:
    model = onnx.load(small_model)
    for attribute in next(n for n in model.graph.node if n.op_type == "FpLinear").attribute:
        if attribute.name == "weight_format":
            attribute.s = b"\xffe2m1"
    onnx.save(model, small_model)
    (layer,) = json.loads(run("inspect", small_model, "--json").out)["layers"]
    assert layer["weight_format"] == "\\xffe2m1"


def test_inspect_names_operators_without_a_body(run: Any, small_model: Path) -> None:
    model = onnx.load(small_model)
    del model.functions[:]
    onnx.save(model, small_model)
    facts = json.loads(run("inspect", small_model, "--json").out)
    assert facts["without_function"] == ["com.fp4dit.FpLinear", "com.fp4dit.FpQuantize"]
    assert "runs with its library only" in run("inspect", small_model).out


@pytest.mark.parametrize("content", [b"", b"no model at all", bytes(100)])
def test_inspect_refuses_other_files(run: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    assert_one_line(run("inspect", tmp_path / "x.onnx"), "is not an ONNX model", "expected")


def test_inspect_pipeline(run: Any, demo_folder: Path) -> None:
    facts = json.loads(run("inspect", demo_folder, "--json").out)
    assert facts["family"] == "PixArt-alpha"
    (transformer,) = (c for c in facts["components"] if c["name"] == "transformer")
    assert transformer["bytes"] == sum(t["bytes"] for t in facts["tensors"])
    assert "proj_out.weight" in run("inspect", demo_folder).out


@pytest.mark.parametrize("what", ["bundle", "model", "pipeline"])
def test_inspect_fits_100_columns_with_a_row_a_kind(
    run: Any, demo_bundle: Path, demo_folder: Path, what: str
) -> None:
    model = demo_bundle / "transformer" / "model.onnx"
    shown = run("inspect", {"bundle": demo_bundle, "model": model, "pipeline": demo_folder}[what])
    lines = shown.out.splitlines()
    tables = [line for line in lines if not line.startswith(("bundle ", "model ", "pipeline "))]
    assert max(map(len, tables)) <= 100
    names = [line.split()[0] for line in lines if ".*." in line]
    assert "transformer_blocks.*.attn1.to_q" in " ".join(names)
    assert names == sorted(names)
    assert len(names) == len(set(names))
    assert not any("transformer_blocks.0." in line for line in lines)


def test_inspect_refuses_a_damaged_bundle(run: Any, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format_version": 99}')
    assert_one_line(run("inspect", tmp_path), "format_version 99", "reads 1")
