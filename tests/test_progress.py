"""Progress on a terminal and off it."""

from __future__ import annotations

import io

from rich.console import Console

from fp4dit_onnx.progress import RichReporter


def test_a_terminal_shows_the_detail_beside_the_stage() -> None:
    file = io.StringIO()
    reporter = RichReporter(Console(file=file, force_terminal=True, width=160))
    with reporter.stage("calibrating", 4) as advance:
        advance(1, "blocks.3, error 0.621")
        advance(1)
        advance(2, "blocks.4, error 0.584")
    shown = file.getvalue()
    assert "calibrating: blocks.4, error 0.584" in shown
    assert "4/4" in shown


def test_off_a_terminal_a_stage_is_one_line() -> None:
    file = io.StringIO()
    reporter = RichReporter(Console(file=file, force_terminal=False, width=160))
    with reporter.stage("calibrating", 4) as advance:
        advance(4, "blocks.3, error 0.621")
    assert file.getvalue().startswith("calibrating: 4 done in ")
    assert file.getvalue().count("\n") == 1
