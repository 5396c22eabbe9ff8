"""The CUDA kernels with faults put in, which the emulated GPU must show.

All faults are compiled into one library, each behind a number that `fp4dit_mutant` selects at run
time: 0 is the kernels as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emulated_gpu import SOURCE, compile_kernels

KERNELS = "gpu/kernels"


@dataclass(frozen=True)
class Mutant:
    """`fault` in place of the statement `source`, which stands in `file` once after `before`.

    Attributes:
        race: whether it is one, which is told whatever order threads run in.
    """

    file: str
    source: str
    fault: str
    before: str = ""
    race: bool = False


def _linear(source: str, fault: str) -> Mutant:
    return Mutant(f"{KERNELS}/linear.cu", source, fault)


def _sums(source: str, fault: str) -> Mutant:
    return Mutant(f"{KERNELS}/linear_sums.h", source, fault)


def _attention(source: str, fault: str) -> Mutant:
    return Mutant(f"{KERNELS}/attention.cu", source, fault)


def _race(file: str, source: str, fault: str = ";", before: str = "") -> Mutant:
    return Mutant(f"{KERNELS}/{file}", source, fault, before, race=True)


MUTANTS = {
    "quantize: no barrier": _race("quantize_group.h", "Sync();"),
    "quantize: half a warp's maximum": Mutant(
        f"{KERNELS}/quantize_group.h",
        "v = Larger(v, ShuffleXor(v, mask));",
        "v = Larger(v, ShuffleXor(v, mask / 2));",
    ),
    "plain: no barrier before staging": _race(
        "linear_plain.cu", "Sync();", before="kChunk;\n      "
    ),
    "plain: no barrier after staging": _race(
        "linear_plain.cu", "Sync();", before="q, w);\n      "
    ),
    "plain: fma split": Mutant(
        f"{KERNELS}/linear_plain.cu", "return Fma(a, b, c);", "return Add(Mul(a, b), c);"
    ),
    "rotate: no barrier of the warp before": _race(
        "rotate.h", "SyncWarp();", before="y[i] = kGelu ? Gelu(x[i]) : x[i];\n  "
    ),
    "rotate: no barrier of the warp within": _race("rotate.h", "SyncWarp();", before="}\n    "),
    "rotate: no barrier of the warp after": _race(
        "rotate.h", "SyncWarp();", before="factor);\n  "
    ),
    "linear: no barrier": _race(
        "linear.cu", "Sync();", before="WaitCopies<kStages - 2>();\n      "
    ),
    "linear: waits for too little": _race(
        "linear.cu", "WaitCopies<kStages - 2>();", "WaitCopies<kStages - 1>();"
    ),
    "linear: no wait": _race("linear.cu", "WaitCopies<kStages - 2>();"),
    "linear: overwrites what is read": _race(
        "linear.cu",
        "Stage<C>(a, first_row, s + kStages - 1, stages);",
        "Stage<C>(a, first_row, s + kStages, stages);",
    ),
    "linear: pieces of 16 bytes wherever they begin": Mutant(
        "gpu/linear_plan.cc",
        "a.aligned = whole_runs && static_cast<size_t>(a.k) % piece == 0 &&\n"
        "                      reinterpret_cast<uintptr_t>(call.q) % 16 == 0\n"
        "                  ? 1\n"
        "                  : 0;",
        "a.aligned = whole_runs && static_cast<size_t>(a.k) % piece == 0 ? 1 : 0;",
    ),
    "linear: fma of groups split": _sums(
        "sums.y[i][j][e] = Fma(scale[e % 2], part, sums.y[i][j][e]);",
        "sums.y[i][j][e] = Add(Mul(scale[e % 2], part), sums.y[i][j][e]);",
    ),
    "linear: product and bias fused": _sums(
        "y = a.plain != 0 ? Add(Mul(scale, y), bias) : Fma(scale, y, bias);",
        "y = Fma(scale, y, bias);",
    ),
    "linear: fma of the row split": _sums(
        "y = a.plain != 0 ? Add(Mul(scale, y), bias) : Fma(scale, y, bias);",
        "y = Add(Mul(scale, y), bias);",
    ),
    "linear: a fragment's rows": _linear(
        "LoadMatrices(Piece<C>(stage, row + lane % 16, step * 2 + lane / 16), a[0]);",
        "LoadMatrices(Piece<C>(stage, row + lane / 2, step * 2 + lane % 2), a[0]);",
    ),
    "linear: a sign without its one": Mutant(
        f"{KERNELS}/decode.h",
        "b[i] = (magnitude ^ minus) + (minus & 0x01010101u);",
        "b[i] = magnitude ^ minus;",
    ),
    "linear: planes swapped": _linear(
        "a[1][half * 2 + i] = Permute(wide[i], wide[i + 2], 0x7531);",
        "a[1][half * 2 + i] = Permute(wide[i], wide[i + 2], 0x6420);",
    ),
    "decoded: halves swapped": Mutant(
        f"{KERNELS}/linear_decode.cu", "to[half * 32] = bytes;", "to[32 - half * 32] = bytes;"
    ),
    "shared: begins with the first multipliers": _linear(
        "multipliers += step / a.multiplier_steps * a.n_padded;", ";"
    ),
    "shared: leaves its first multipliers late": _linear(
        "multiplier_left += 1 - step % a.multiplier_steps;", "multiplier_left += 1;"
    ),
    "shared: every sum in the first place": _sums("++slot;", ";"),
    "shared: a run's last sum alone": Mutant(
        f"{KERNELS}/linear_fold.cu", "sum += *sums;", "sum = *sums;"
    ),
    "shared: fma of groups split": Mutant(
        f"{KERNELS}/fold.h",
        "y = Fma(weight_scale, sum, y);",
        "y = ::Add(Mul(weight_scale, sum), y);",
    ),
    "shared: groups of weights and of activations confused": Mutant(
        f"{KERNELS}/linear_fold.cu",
        "fold.Add(a.several != 0, scale[run / a.act_runs],\n"
        "             linear::WeightScale(a, run / a.scale_runs, channel), ends,\n"
        "             ToFloat(static_cast<int32_t>(sum)));",
        "fold.Add(a.several != 0, scale[run / a.scale_runs],\n"
        "             linear::WeightScale(a, run / a.scale_runs, channel), ends,\n"
        "             ToFloat(static_cast<int32_t>(sum)));",
    ),
    "attention: no barrier": _race(
        "attention_chunks.h", "Sync();", before="WaitCopies<1>();\n    "
    ),
    "attention: waits for too little": _race(
        "attention_chunks.h", "WaitCopies<1>();", "WaitCopies<2>();"
    ),
    "attention: no barrier before the only chunk": _race(
        "attention_chunks.h", "Sync();", before="if (a.stages == 1) {\n    "
    ),
    "attention: no barrier after the only chunk": _race(
        "attention_chunks.h", "Sync();", before="WaitCopies<0>();\n    "
    ),
    "attention: pieces of 8 bytes wherever they begin": Mutant(
        "gpu/attention.cc", "return ends % 8 == 0;", "return row_bytes % 8 == 0;"
    ),
    "attention: fma of scores split": _attention(
        "at = Fma(rows.query_scale[e / 2], Mul(place.key_scale[key], ToFloat(sums[t][e])),\n"
        "                   place.key_bias[key]);",
        "at = Add(Mul(rows.query_scale[e / 2], Mul(place.key_scale[key], ToFloat(sums[t][e]))),\n"
        "                   place.key_bias[key]);",
    ),
    "attention: sums of tiles fused": _attention(
        "y[d][e] = Add(Mul(y[d][e], rows.shrink[e / 2]), tile);",
        "y[d][e] = Fma(y[d][e], rows.shrink[e / 2], tile);",
    ),
    "attention: fewer partial sums": _attention(
        "sums[t % 2][e] = Add(sums[t % 2][e], x);", "sums[0][e] = Add(sums[0][e], x);"
    ),
    "attention: partial sums in another order": _attention(
        "folded[e] = Add(folded[e], ShuffleXorFloat(folded[e], 2));\n"
        "      folded[e] = Add(folded[e], ShuffleXorFloat(folded[e], 1));",
        "folded[e] = Add(folded[e], ShuffleXorFloat(folded[e], 1));\n"
        "      folded[e] = Add(folded[e], ShuffleXorFloat(folded[e], 2));",
    ),
    "attention: channels in another order": _attention(
        "if (channel < channels) to[channel] = Div(y[d][e], rows.total[r]);",
        "if (channel < channels) to[channel ^ (channel + 1 < channels)] = Div(y[d][e], rows.total[r]);",
    ),
}


def _with_mutants(file: str) -> str:
    """The text of `file` with the choice of its mutants."""
    text = (SOURCE / file).read_text()
    statements: dict[int, str] = {}
    chosen: dict[int, str] = {}
    for number, mutant in enumerate(MUTANTS.values(), 1):
        if mutant.file != file:
            continue
        assert text.count(mutant.before + mutant.source) == 1, mutant
        at = text.index(mutant.before + mutant.source) + len(mutant.before)
        assert statements.setdefault(at, mutant.source) == mutant.source
        chosen[at] = (
            chosen.get(at, "") + f"if (fp4dit_mutant == {number}) {{ {mutant.fault} }} else "
        )
    for at, source in sorted(statements.items(), reverse=True):
        text = text[:at] + chosen[at] + f"{{ {source} }}" + text[at + len(source) :]
    return 'extern "C" int fp4dit_mutant;\n' + text


def compile_mutants(folder: Path) -> Path:
    """A library of all mutants, number 1 the first of `MUTANTS`."""
    (folder / KERNELS).mkdir(parents=True)
    for file in {mutant.file for mutant in MUTANTS.values()}:
        (folder / file).write_text(_with_mutants(file))
    (folder / "mutant.cc").write_text('extern "C" {\nint fp4dit_mutant = 0;\n}\n')
    return compile_kernels(folder / "libmutants.so", ("-std=c++17", "-O1"), folder)
