"""Methods as data: recipes, presets, stages, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fp4dit_onnx.calibration.methods import Data, method_by_name, read_method
from fp4dit_onnx.calibration.recipe_tables import method_names
from fp4dit_onnx.calibration.stages import STAGES
from fp4dit_onnx.calibration.stages.absmax import Absmax
from fp4dit_onnx.calibration.stages.adaround import AdaRound
from fp4dit_onnx.calibration.stages.choose_format import ChooseFormat
from fp4dit_onnx.calibration.stages.gptq import Gptq
from fp4dit_onnx.calibration.stages.mse import Mse
from fp4dit_onnx.calibration.stages.nearest import Nearest
from fp4dit_onnx.calibration.stages.weighted import Weighted
from fp4dit_onnx.errors import UsageError

HEAD = 'grid = "fp"\n[data]\nprompts = 1\nsamples = 2\n'
RANGE, ROUND = '[[stage]]\nuse = "absmax"\n', '[[stage]]\nuse = "nearest"\n'


def test_methods() -> None:
    assert method_names() == (
        *("fp4dit", "2dquant", "activation-regularization", "affinequant", "awq", "four-over-six"),
        *("fp-adaround", "fp-rtn", "gptq", "hq-dit", "int-adaround", "int-rtn", "llm-fp4"),
        *("ptq1.61", "ptq1.61-restored", "ptq4dit", "q-dit", "repq-vit", "smoothquant"),
        *("svdquant", "tuned", "tuned-best", "vidit-q"),
    )
    trained = {name: method_by_name(name) for name in method_names()}
    without = [n for n, m in trained.items() if not m.needs_data]
    assert without == ["four-over-six", "fp-rtn", "int-rtn"]
    assert [n for n, m in trained.items() if m.grid == "int"] == [
        *("2dquant", "affinequant", "awq", "int-adaround", "int-rtn", "ptq1.61"),
        *("ptq1.61-restored", "ptq4dit", "q-dit", "repq-vit", "smoothquant", "vidit-q"),
    ]
    assert trained["fp-rtn"].stages == (Absmax(), Nearest())
    assert trained["fp4dit"].stages == (Absmax(), AdaRound())
    assert trained["fp4dit"].data == Data(prompts=64, samples=1024, even=0.5, guided=3.0)
    assert trained["gptq"].stages == (Weighted(), Gptq())
    rotation = STAGES["hadamard"]()
    assert trained["tuned"].stages == (rotation, ChooseFormat("e1m2 e2m1"), Weighted(), Gptq())
    assert trained["fp4dit"].presets == ("fast", "balanced", "best")
    fast = method_by_name("int-adaround", "fast", "mse", iterations=7)
    assert fast.data == Data(prompts=24, samples=256, even=0.5, guided=3.0)
    classic = AdaRound(iterations=7, penalty=50.0, scale_aware=False, learning_rate=3e-2)
    assert fast.stages == (Mse(), classic)
    best = method_by_name("fp4dit", "best", samples=3)
    assert (best.iterations, best.data.prompts, best.data.samples) == (1200, 128, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best",), "unknown method 'best': expected one of .*int-rtn"),
        (("fp4dit", "quick"), "unknown preset 'quick': expected one of fast, balanced, best"),
        (("fp-rtn", "quick"), "unknown preset 'quick': expected one of fast, balanced, best"),
        (("fp4dit", "fast", "max"), "unknown range 'max': expected one of absmax, mse"),
    ],
)
def test_unknown_methods(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method_by_name(*arguments)


def test_a_setting_that_no_stage_has() -> None:
    with pytest.raises(UsageError, match="unknown setting 'speed' of method 'fp4dit'"):
        method_by_name("fp4dit", speed=3)


def test_a_recipe_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (HEAD + RANGE + ROUND).encode())  # saved by Notepad
    method = read_method(path)
    assert (method.name, method.grid, method.stages) == ("mine", "fp", (Absmax(), Nearest()))
    path.write_text('extends = "fp4dit"\n[adaround]\npenalty = 7\n')
    method = read_method(path, "fast")
    assert method.stages == (Absmax(), AdaRound(iterations=60, penalty=50.0)), "a preset wins"
    assert read_method(path).stages[1] == AdaRound(penalty=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid = ", "expected a TOML file"),
        ("speed = 3", "unknown key 'speed'"),
        ('extends = "x"', "unknown method 'x'"),
        ("extends = 3", "extends 3: expected a recipe's name"),
        ('grid = "fp3"\n', "grid 'fp3': expected fp or int"),
        (HEAD, "stages none: expected one range and one rounding"),
        (HEAD + RANGE, r"stages absmax \(range\): expected one range and one rounding"),
        (
            HEAD + ROUND + RANGE,
            r"nearest \(rounding\), absmax \(range\): expected .* in the order",
        ),
        (HEAD + RANGE + RANGE + ROUND, "expected one range"),
        (HEAD + RANGE + '[[stage]]\nuse = "gtpq"\n', "unknown stage 'gtpq': expected one of"),
        (HEAD + RANGE + "x = 1\n" + ROUND, "stage absmax: unknown setting 'x'"),
        (HEAD + '[[stage]]\nuse = "mse"\nlowest = "low"\n', "lowest 'low': expected float"),
        (HEAD + '[[stage]]\nuse = "mse"\ncandidates = true\n', "candidates True: expected int"),
        (HEAD + '[[stage]]\nuse = "mse"\nlowest = 0.0\n', "mse.lowest = 0.0"),
        (HEAD + '[[stage]]\nuse = "mse"\nlowest = nan\n', "mse.lowest = nan"),
        (HEAD + RANGE + '[[stage]]\nuse = "adaround"\nbatch = 0\n', "adaround.batch = 0"),
        (HEAD + RANGE + ROUND + "[adaround]\nbatch = 2\n", "settings of adaround, which is none"),
        (HEAD + RANGE + ROUND + "[preset.balanced]\nx = 2\n", "preset balanced: unknown key 'x'"),
        (HEAD.replace("1", "0") + RANGE + ROUND, "data.prompts = 0"),
        (HEAD.replace("prompts = 1\n", "") + RANGE + ROUND, "data: .*prompts"),
        (HEAD + "pictures = 3\n" + RANGE + ROUND, "data: unknown setting 'pictures'"),
        ("stage = 3\n" + HEAD, "stage 3: expected tables"),
        ("preset = 3\n" + HEAD + RANGE + ROUND, "preset 3: expected tables"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_method(path)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a TOML file"):
        read_method(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="expected a TOML file"):
        read_method(tmp_path / "binary.toml")
