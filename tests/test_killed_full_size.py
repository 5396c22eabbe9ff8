"""The command that kills exports of official size: what it tells apart, and when it kills."""

from __future__ import annotations

import sys
from pathlib import Path

import killed_full_size
import pytest
from killed_full_size import Moment, compared, run_killed

from fp4dit_onnx.errors import Fp4DitError

WRITES = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(float(sys.argv[2]))"


def test_files_that_differ_or_are_absent_are_named() -> None:
    whole = {"a": "1", "b": "2", "c": "3"}
    assert compared(whole, dict(whole)) == []
    assert compared(whole, {"a": "1", "b": "9", "d": "4"}) == ["b", "c", "d"]


def test_it_kills_when_the_moment_has_come(tmp_path: Path) -> None:
    moment = Moment("there is a file", lambda work: (work / "file").exists(), 0.0)
    command = [sys.executable, "-c", WRITES, str(tmp_path / "file")]
    run_killed([*command, "600"], tmp_path, moment)
    with pytest.raises(Fp4DitError, match="ended with code 0 before: there is no file"):
        run_killed([*command, "0"], tmp_path, Moment("there is no file", lambda _: False, 0.0))


def test_moments_are_read_off_a_work_folder(tmp_path: Path) -> None:
    sampling, early, later = killed_full_size.MOMENTS
    assert not any(moment.come(tmp_path) for moment in killed_full_size.MOMENTS)
    (tmp_path / "importance.pt").touch()
    assert sampling.come(tmp_path)
    (tmp_path / "units").mkdir()
    for number in range(5):
        (tmp_path / "units" / f"{number}.safetensors").touch()
        assert early.come(tmp_path) == (number >= 1)
    assert later.come(tmp_path)
