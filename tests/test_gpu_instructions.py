"""Counting the instructions of kernels: what nvdisasm prints is read right."""

from __future__ import annotations

from pathlib import Path

import build_gpu
import gpu_instructions
import pytest

LISTING = """
	.section	.text.multiply,"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=40"
.text.multiply:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/                   STL [R1], R2 ;
.L_x_0:
        /*0030*/                   LDSM.16.M88.4 R4, [R0] ;
        /*0040*/                   IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, RZ ;
        /*0050*/                   IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4 ;
        /*0060*/              @!UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0070*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0080*/                   EXIT ;

	.section	.text.copy,"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=8"
.text.copy:
        /*0000*/                   LDG.E R0, [R2.64] ;
        /*0010*/                   EXIT ;
"""


def test_blocks_of_a_listing() -> None:
    first, second = gpu_instructions.listings(LISTING)
    assert (first.kernel, first.registers, first.spills) == ("multiply", 40, 1)
    assert [block.size for block in first.blocks if block.size] == [2, 1, 5, 1]
    assert [block.products for block in first.blocks if block.products] == [2]
    assert list(gpu_instructions.lines(first)) == [
        "multiply, 40 registers, 1 accesses of spilled ones",
        "    5 instructions, 2 products: 1 LDSM, 1 UIADD3, 1 BRA",
    ]
    assert (second.kernel, second.registers) == ("copy", 8)
    assert not list(gpu_instructions.lines(second))


def test_without_nvdisasm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_instructions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build_gpu.BuildError, match="pip install nvidia-cuda-nvdisasm"):
        gpu_instructions.nvdisasm()
    assert gpu_instructions.main([]) == 2
    assert capsys.readouterr().err.startswith("error: there is no nvdisasm")
