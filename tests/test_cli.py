"""The command line: exit codes, one-line errors, JSON alone on stdout, and what it imports."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from manifests import EMPTY, layer
from rich.console import Console

from fp4dit_onnx import cli
from fp4dit_onnx.bundle.manifest import Kept
from fp4dit_onnx.calibration.methods import preset_names, range_names
from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.commands import output
from fp4dit_onnx.commands.parameters import parameters_of
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.numbers.formats import FORMATS
from fp4dit_onnx.numbers.scale_formats import SCALE_FORMATS
from fp4dit_onnx.spec.recipe import FORMS
from fp4dit_onnx.system.progress import RichReporter
from fp4dit_onnx.targets import TARGETS


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
    run(*arguments).refuses(*words)


def test_quiet_is_nothing_but_errors_and_json(run: Any, small_model: Path) -> None:
    for arguments in (["--quiet", "inspect", small_model], ["inspect", small_model, "-q"]):
        assert run(*arguments) == (0, "", "")
    assert json.loads(run("inspect", small_model, "--json", "--quiet").out)["kind"] == "model"
    run("inspect", "/nowhere", "--quiet").refuses("/nowhere not found")
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


def test_dry_run_prints_sizes_and_writes_nothing(run: Any, tmp_path: Path) -> None:
    outcome = run("export", "--dry-run", "-o", tmp_path / "bundle")
    assert outcome.code == 0
    assert "transformer_blocks.*.attn1.to_q" in outcome.out
    assert "attention: q, k, v of 16 modules in e2m3 per head and token\n" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_says_where_tokens_have_several_scales(run: Any) -> None:
    assert "inputs (" not in run("export", "--dry-run").out
    out = run("export", "--dry-run", "--activation-group-size", "16").out
    found = re.search(
        r"activations of (\d+) layers: a scale per token and 16 inputs \((.*)\)\n", out
    )
    assert found is not None
    assert int(found[1]) > 50
    assert found[2].endswith(", ...")


def test_dry_run_as_json(run: Any) -> None:
    content = json.loads(run("export", "--dry-run", "--json").out)
    assert content["totals"]["bits_per_weight"] < 4.3
    assert len(content["layers"]) == content["totals"]["layers"]
    assert set(content["attention"].values()) == {"e2m3"}
    assert content["recipe"]["attention"] == "e2m3"


def test_dry_run_with_attention_in_float(run: Any) -> None:
    assert "attention:" not in run("export", "--dry-run", "--attention-format", "none").out
    out = run("export", "--dry-run", "--rule", "*.attn1.to_k=none").out
    assert "attention: q, k, v of 8 modules in e2m3 per head and token\n" in out


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
    run(*arguments).refuses(*words)


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
