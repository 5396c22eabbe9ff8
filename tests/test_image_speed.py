"""The tool that measures whole images: what it makes and asks for, and its tables and goal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import image_speed as tool
import pytest


def outcome(name: str, seconds: float, peak: float) -> dict[str, Any]:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "low": value, "high": value, "least": value / 2, "most": value}

    return {
        "name": name,
        "load": spread(1.5),
        "seconds": spread(seconds),
        "stages": {"text encoder": spread(0.5), "step": spread(seconds - 0.5)},
        "peak_bytes": spread(peak),
        "ratio": spread(20 / seconds),
        "memory_ratio": peak / 4e9,
        "psnr_db": 20.5 if name != "ort-float32" else None,
    }


def case(ours: float, peak: float) -> dict[str, Any]:
    peers = [outcome("ort-float32", 20, 4e9), outcome("torch-bf16", 12, 2e9)]
    listed = [outcome("fp4dit avx2", ours, peak), *peers]
    return {"name": "512 x 512", "outcomes": listed, "absent": {"ort-int8": "killed"}}


@pytest.mark.parametrize(
    ("ours", "peak", "words"),
    [
        (4, 0.8e9, "3.00 times as fast (goal 2.5), in 40% of its memory (goal 50%): met"),
        (6, 0.8e9, "2.00 times as fast (goal 2.5), in 40% of its memory (goal 50%): missed"),
        (4, 1.2e9, "3.00 times as fast (goal 2.5), in 60% of its memory (goal 50%): missed"),
    ],
)
def test_the_goal_is_held_to_the_fastest_peer(ours: float, peak: float, words: str) -> None:
    text = tool.goal(case(ours, peak))
    assert "Best peer torch-bf16" in text
    assert words in text
    found = case(ours, peak)
    found["outcomes"].append(outcome("fp4dit-low-memory", 9, 0.9e9))
    assert "of its memory (goal 50%), 45% as fp4dit-low-memory: " in tool.goal(found)
    assert tool.goal(found).endswith(": met.") == (ours == 4)
    found["outcomes"][-1]["peak_bytes"] = None
    assert tool.goal(found) == text, "where a system does not say its peak, it has no share"
    assert "not measured" in tool.goal({"outcomes": case(ours, peak)["outcomes"][:1]})


def test_the_commands_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is kept, the rest is made; the tables go between the marks of the page."""
    (tmp_path / "pipeline").mkdir()
    exports: list[tuple[str, ...]] = []
    monkeypatch.setattr(tool, "export", lambda *words: exports.append(words))
    made = {"cpu": "an EPYC", "threads": 2, "cores": 2, "versions": {"python": "3"}}
    monkeypatch.setattr(tool, "run", lambda _: {"machine": made, "cases": [case(4, 1e9)]})
    page = tmp_path / "performance.md"
    page.write_text(
        "kept\n<!-- a whole image -->\nearlier words\n<!-- end of a whole image -->\nkept too\n"
    )
    monkeypatch.setattr(tool.Section, "path", page)
    tool.main(["--folder", str(tmp_path), "--rounds", "5", "--write"])
    assert [words[2] for words in exports] == [str(tmp_path / "bundle"), str(tmp_path / "float")]
    assert "*=none" in exports[1]
    text = page.read_text()
    assert "earlier words" not in text
    assert str(tmp_path) not in text
    assert text.startswith("kept\n")
    assert text.endswith("kept too\n")
    assert text.count("Best peer") == 1
    assert "| fp4dit avx2 | 1.50 | 0.50 | 3.50 | 4.00 | 4.00 - 4.00 | 2.00 - 4.00 | 5.00 |" in text
    assert "Absent: ort-int8: killed" in text
    for steps in (
        "--steps 20 --guidance 4.5",
        "--steps 4 --guidance 4.5",
        "--steps 4 --guidance 1",
    ):
        assert f"--rounds 5 {steps}`" in text
