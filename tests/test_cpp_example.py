"""The C++ example: built here and for aarch64, it generates the images of the Python pipeline."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnx_graphsurgeon")
pytest.importorskip("onnxruntime")
pytest.importorskip("nlohmann_json")

import emulation
from cpp_programs import built, refusal, run
from PIL import Image
from table_scheduler import Table, write_table

from fp4dit_onnx.evaluation.metrics import psnr
from fp4dit_onnx.families.pixart import PIXART_ALPHA
from fp4dit_onnx.prompts import demo_prompts
from fp4dit_onnx.runtime.library import library_path
from fp4dit_onnx.runtime.pipeline import Pipeline
from fp4dit_onnx.runtime.tokenizer import Tokenizer

Array = npt.NDArray[Any]
PROMPT = "red apple"
STEPS = 4
LIBRARY = ("--library", library_path())
"""With which sessions are made in a fraction of the time that function bodies take."""
SAME_PICTURE_DB = 15.0
"""After two steps. Rounding alone, by the sampler, the function bodies or another processor, leaves
18 to 20 dB; images of other seeds are 9 to 11 dB apart. (More steps bring the images of all
seeds closer, and so what is to be told apart.)"""
ABSENT_HERE = [name for name in ("c++", "cmake") if shutil.which(name) is None]
ABSENT_THERE = [
    name
    for name in ("aarch64-linux-gnu-g++", "qemu-aarch64", "cmake")
    if shutil.which(name) is None
]

pytestmark = pytest.mark.skipif(
    bool(ABSENT_HERE) or sys.platform == "win32",
    reason=f"needs c++ and cmake, and no Windows; absent: {', '.join(ABSENT_HERE) or 'none'}",
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are, with sanitizers."""
    folder, sanitize = tmp_path_factory.mktemp("build"), "-DFP4DIT_SANITIZE=address,undefined"
    return built(folder, sanitize, targets=("text_to_image", "parts"))


@pytest.fixture(scope="module")
def four_steps(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle with a table of few steps."""
    folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("cpp") / "bundle"))
    write_table(folder, STEPS)
    return folder


@pytest.fixture(scope="module")
def short(four_steps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with a table of two steps."""
    folder = Path(shutil.copytree(four_steps, tmp_path_factory.mktemp("short") / "bundle"))
    write_table(folder, 2)
    return folder


@pytest.fixture
def damaged(four_steps: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the bundle with one value of a JSON file replaced."""

    def make(file: str, place: Sequence[str | int], value: Any) -> Path:
        folder = Path(shutil.copytree(four_steps, tmp_path / "damaged"))
        content = json.loads((folder / file).read_text())
        target = content
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = value
        (folder / file).write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def draw(programs: Path, tmp_path: Path) -> Callable[..., Array]:
    """The image that the program generates, uint8 [H, W, 3]."""

    def make(bundle: Path, *options: object, prompt: str = PROMPT) -> Array:
        path = tmp_path / "picture.bmp"
        places = ["--runtime", emulation.x86_runtime(), "--threads", 1, *options, bundle]
        program = programs / "text_to_image"
        result = run(program, "--library", library_path(), *places, prompt, path)
        assert (result.returncode, result.stderr) == (0, b""), result.stderr.decode()
        with Image.open(path) as picture:
            return np.asarray(picture)

    return make


def drawn_in_python(
    bundle: Path, *, table: bool = True, library: bool = True, steps: int = STEPS, **settings: Any
) -> Array:
    """The image of the Python pipeline, by the table or by its own scheduler."""
    pipeline = Pipeline(bundle, library=library, threads=1)
    if table:
        pipeline.scheduler = Table(bundle)
    return np.asarray(pipeline.generate([PROMPT], steps=steps, **settings)[0])


@pytest.mark.parametrize("library", [True, False])
def test_the_picture_is_that_of_the_python_pipeline(
    four_steps: Path, draw: Callable[..., Array], library: bool
) -> None:
    """The same pixels by the same table: noise, tokens, guidance and decoding leave no difference."""
    found = draw(four_steps, *([] if library else ["--no-library"]))
    np.testing.assert_array_equal(found, drawn_in_python(four_steps, library=library))


def test_the_seed_is_the_python_pipelines(four_steps: Path, draw: Callable[..., Array]) -> None:
    found = draw(four_steps, "--seed", 2**40 + 7)
    np.testing.assert_array_equal(found, drawn_in_python(four_steps, seeds=2**40 + 7))
    assert not np.array_equal(found, draw(four_steps))


def test_the_pipelines_own_scheduler_differs_by_rounding_only(
    short: Path, draw: Callable[..., Array]
) -> None:
    found = draw(short)
    assert psnr(found, drawn_in_python(short, table=False, steps=2)) > SAME_PICTURE_DB
    assert psnr(found, drawn_in_python(short, table=False, steps=2, seeds=1)) < SAME_PICTURE_DB


def test_steps_may_look_two_steps_back(
    damaged: Callable[..., Path], draw: Callable[..., Array]
) -> None:
    weights = [[1.5, 0.5, 9.0], [1.5, -0.5, 9.0], [1.5, -0.25, -0.25], [1.0, 0.125, -0.125]]
    bundle = damaged("scheduler/steps.json", ["sample"], weights)
    found = draw(bundle)
    np.testing.assert_array_equal(found, drawn_in_python(bundle))
    assert len(np.unique(found)) > 50


def test_schedulers_of_few_steps(
    four_steps: Path, tmp_path: Path, draw: Callable[..., Array]
) -> None:
    """Noise of a step, scaled inputs, four taps: by the table and by the scheduler itself."""
    lcm = {"_class_name": "LCMScheduler", "beta_schedule": "linear"}
    ancestral = {"_class_name": "EulerAncestralDiscreteScheduler"}
    third = {"_class_name": "UniPCMultistepScheduler", "solver_order": 3}
    for number, config in enumerate((lcm, ancestral, third)):
        bundle = Path(shutil.copytree(four_steps, tmp_path / str(number)))
        (bundle / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        write_table(bundle, STEPS)
        found = draw(bundle, "--seed", 3)
        np.testing.assert_array_equal(found, drawn_in_python(bundle, seeds=3))
        assert psnr(found, drawn_in_python(bundle, table=False, seeds=3)) > SAME_PICTURE_DB


@pytest.fixture
def originals(tmp_path: Path) -> list[Any]:
    """Options that begin with an image, in half of it."""
    image = tmp_path / "image.bmp"
    rows, columns = np.mgrid[:64, :64] * 4
    colours = np.stack([rows, columns, 255 - rows], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(image)
    mask = Image.new("L", (64, 64), 100)
    mask.paste(200, (0, 0, 64, 32))
    mask.save(tmp_path / "mask.bmp")
    return ["--image", image, "--strength", 0.75, "--mask", tmp_path / "mask.bmp"]


def test_images_to_begin_with(
    four_steps: Path, draw: Callable[..., Array], originals: list[Any]
) -> None:
    """Three of four steps, of a scheduler that looks back; the same pixels by the same table."""
    image, mask = Image.open(originals[1]), Image.open(originals[5])
    found = draw(four_steps, *originals, "--seed", 2**40 + 7)
    options = {"seeds": 2**40 + 7, "strength": 0.75, "image": image}
    expected = drawn_in_python(four_steps, **options, mask=mask)
    np.testing.assert_array_equal(found, expected)
    assert psnr(found[40:], np.asarray(image)[40:]) > psnr(found[:24], np.asarray(image)[:24])
    assert not np.array_equal(draw(four_steps, *originals[:4]), draw(four_steps, *originals))


def test_bundles_that_cannot_begin_with_images(
    programs: Path, damaged: Callable[..., Path], tmp_path: Path, originals: list[Any]
) -> None:
    folder = damaged("scheduler/steps.json", ["levels"], None)
    options = ["--runtime", emulation.x86_runtime(), *LIBRARY, *originals]
    places = [folder, PROMPT, tmp_path / "out.bmp"]
    assert "no levels, which --image needs" in refusal(programs, *options, *places)
    write_table(folder, STEPS)
    shutil.rmtree(folder / "vae_encoder")
    assert "model.onnx not found, which --image" in refusal(programs, *options, *places)


def test_token_ids_in_place_of_a_prompt(four_steps: Path, draw: Callable[..., Array]) -> None:
    ids, mask = Tokenizer(four_steps / "tokenizer")([PROMPT], 16)
    words = ",".join(str(i) for i in ids[0][mask[0] == 1])
    np.testing.assert_array_equal(
        draw(four_steps, "--ids", words, prompt="\N{SNOWMAN}"), draw(four_steps)
    )


def test_without_guidance(damaged: Callable[..., Path], draw: Callable[..., Array]) -> None:
    bundle = damaged("quantization.json", ["sampling", "guidance"], 1)
    np.testing.assert_array_equal(draw(bundle), drawn_in_python(bundle))


def test_noise_between_the_steps(damaged: Callable[..., Path], draw: Callable[..., Array]) -> None:
    bundle = damaged("scheduler/steps.json", ["noise"], [0.25, 0.5, 0, 0.125])
    found = draw(bundle, "--seed", 3)
    np.testing.assert_array_equal(found, drawn_in_python(bundle, seeds=3))


@pytest.mark.parametrize(
    ("count", "seeds"), [(1_000_000, [0]), (3, [2**64 - 1]), (99, [7, 3]), (9, [2**40, 2, 3, 4])]
)
def test_noise_has_numpys_bits(programs: Path, count: int, seeds: list[int]) -> None:
    result = run(programs / "parts", "noise", count, *seeds)
    found = np.frombuffer(result.stdout, np.float32)
    sequence = np.random.SeedSequence(seeds if len(seeds) > 1 else seeds[0])
    source = np.random.Generator(np.random.PCG64(sequence))
    wanted = source.standard_normal(count, np.float32)
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
    assert not np.array_equal(found, np.roll(wanted, 1))


def test_prompts_become_the_tokens_of_the_python_tokenizer(
    programs: Path, four_steps: Path
) -> None:
    lines = [p for p in demo_prompts("evaluation") if p.isascii()]
    lines += ["", "  Red  APPLE!?", "a</s>b <PAD> <unk", "x" * 100, "x" * 101, "don't\tstop\x01"]
    lines += [" ".join(["sixteen"] * 20), "xqzj ##s"]
    folder = four_steps / "tokenizer"
    for length in (16, 2):
        result = run(programs / "parts", "ids", folder, length, text="\n".join(lines) + "\n")
        found = [[int(n) for n in line.split()] for line in result.stdout.decode().splitlines()]
        ids, mask = Tokenizer(folder)(
            [PIXART_ALPHA.texts[0].clean(line) for line in lines], length
        )
        assert found == [list(row[keep == 1]) for row, keep in zip(ids, mask, strict=True)]
    assert len(set(map(tuple, found))) > 3


BAD_VALUES: tuple[tuple[str, list[str | int], Any, str], ...] = (
    ("model_index.json", ["_class_name"], "FluxPipeline", "runs PixArt only"),
    ("quantization.json", ["sampling", "height"], 60, "is 60: expected a multiple of 8"),
    ("quantization.json", ["sampling", "width"], -64, "is -64: expected a whole number"),
    (
        "quantization.json",
        ["largest_size"],
        48,
        "height is 64: expected a whole number from 1 to 48",
    ),
    ("quantization.json", ["sampling"], None, "/sampling/height is absent"),
    ("quantization.json", ["sampling", "guidance"], "3", '/sampling/guidance is "3"'),
    ("transformer/config.json", ["in_channels"], 7, "model.onnx: Got invalid dimensions"),
    ("vae_decoder/config.json", ["scaling_factor"], 0, "expected a number from 1e-06"),
    ("vae_decoder/config.json", ["block_out_channels"], [], "expected 1 to 8 numbers"),
    ("scheduler/steps.json", ["format_version"], 3, "is 3: expected a whole number from 1 to 2"),
    ("scheduler/steps.json", ["initial"], -1, "/initial is -1: expected a number"),
    ("scheduler/steps.json", ["input"], [1], "/input is [1]: expected a list of 4"),
    ("scheduler/steps.json", ["sample", 0], [], "/sample/0 is []: expected a list of 1 to 8"),
    ("scheduler/steps.json", ["steps"], 5, "expected a list of 5"),
    ("scheduler/steps.json", ["sample", 1], [1, 2], "/sample/1 is [1,2]: expected a list of 3"),
    ("scheduler/steps.json", ["output", 2, 0], None, "/output/2/0 is absent: expected a number"),
    ("tokenizer/tokenizer.json", ["model", "type"], "Unigram", "token ids with --ids"),
    ("tokenizer/tokenizer.json", ["model", "vocab", "apple"], -4, "expected token ids"),
    ("tokenizer/tokenizer.json", ["model", "vocab", "apple"], 4000, "text_encoder/model.onnx: "),
    ("tokenizer/tokenizer.json", ["post_processor"], None, "expected TemplateProcessing"),
    ("tokenizer/tokenizer_config.json", ["padding_side"], "left", 'expected "right"'),
)


@pytest.mark.parametrize(("file", "place", "value", "message"), BAD_VALUES)
def test_altered_bundles_are_refused_in_a_line(
    programs: Path,
    damaged: Callable[..., Path],
    tmp_path: Path,
    file: str,
    place: list[str | int],
    value: Any,
    message: str,
) -> None:
    bundle, out = damaged(file, place, value), tmp_path / "out.bmp"
    options = ["--runtime", emulation.x86_runtime(), *LIBRARY, "--threads", 1]
    assert message in refusal(programs, *options, bundle, PROMPT, out)
    assert list(tmp_path.glob("out.bmp*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected BUNDLE, PROMPT and OUT.bmp"),
        (["--seed", "-1", "BUNDLE", PROMPT, "OUT"], "--seed -1: expected a whole number from 0"),
        (["--size", "9", "BUNDLE", PROMPT, "OUT"], "--size is unknown"),
        (["--ids", "", "BUNDLE", PROMPT, "OUT"], "--ids is empty"),
        (["--ids", "1" + ",1" * 16, "BUNDLE", PROMPT, "OUT"], "--ids has 17 numbers"),
        (["/absent", PROMPT, "OUT"], "/absent is no folder"),
        (["BUNDLE", "\N{SNOWMAN}", "OUT"], "the prompt is not ASCII"),
        (["BUNDLE", PROMPT, "/absent/out.bmp"], "/absent/out.bmp cannot be written"),
        (["--threads", "100000", "BUNDLE", PROMPT, "OUT"], "--threads 100000: expected a whole"),
        (["--\x1b[31m\x9b7m", "1", "BUNDLE", PROMPT, "OUT"], "--?[31m??7m is unknown"),
        (["--runtime", "/absent.so", "BUNDLE", PROMPT, "OUT"], "name it with --runtime"),
        (["--library", "/absent.so", "BUNDLE", PROMPT, "OUT"], "Failed to load library"),
        (["--mask", "MASK", "BUNDLE", PROMPT, "OUT"], "without an image: expected --image"),
        (["--strength", "0", "BUNDLE", PROMPT, "OUT"], "--strength 0: expected more than 0"),
        (["--strength", "nan", "BUNDLE", PROMPT, "OUT"], "--strength nan: expected more than 0"),
        (["--image", "SMALL", "BUNDLE", PROMPT, "OUT"], "has 32 x 64 pixels: expected 64 x 64"),
        (["--image", "CUT", "BUNDLE", PROMPT, "OUT"], "cut.bmp is no BMP file"),
        (["--image", "/absent", "BUNDLE", PROMPT, "OUT"], "/absent is no BMP file"),
        (
            ["--image", "IMAGE", "--mask", "IMAGE", "BUNDLE", PROMPT, "OUT"],
            "image.bmp has colours: expected a mask in greyscale",
        ),
    ],
)
def test_bad_requests_are_refused_in_a_line(
    programs: Path,
    four_steps: Path,
    tmp_path: Path,
    originals: list[Any],
    arguments: list[str],
    message: str,
) -> None:
    names = {"BUNDLE": four_steps, "OUT": tmp_path / "out.bmp"}
    names |= {"IMAGE": originals[1], "MASK": originals[5], "CUT": tmp_path / "cut.bmp"}
    names["CUT"].write_bytes((tmp_path / "image.bmp").read_bytes()[:-1])
    names["SMALL"] = tmp_path / "small.bmp"
    Image.new("L", (32, 64)).save(names["SMALL"])
    given: list[object] = [names.get(word, word) for word in arguments]
    library = [] if "--library" in arguments else LIBRARY
    runtime = [] if "--runtime" in arguments else ["--runtime", emulation.x86_runtime()]
    assert message in refusal(programs, *library, *runtime, "--threads", 1, *given)


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae_decoder"])
def test_damaged_models_are_refused_in_a_line(
    programs: Path, four_steps: Path, tmp_path: Path, part: str
) -> None:
    bundle = Path(shutil.copytree(four_steps, tmp_path / "bundle"))
    model = bundle / part / "model.onnx"
    model.write_bytes(model.read_bytes()[:1000])
    options = ["--runtime", emulation.x86_runtime(), *LIBRARY, "--threads", 1]
    assert str(model) in refusal(programs, *options, bundle, PROMPT, tmp_path / "out.bmp")


@pytest.mark.skipif(
    bool(ABSENT_THERE) or platform.machine() != "x86_64",
    reason=f"needs x86-64, the cross compiler and qemu; absent: {', '.join(ABSENT_THERE)}",
)
def test_on_aarch64_under_qemu(short: Path, draw: Callable[..., Array], tmp_path: Path) -> None:
    """Program and library cross-compiled, ONNX Runtime of the wheel for aarch64."""
    toolchain = ["--toolchain", str(emulation.TOOLCHAIN)]
    programs = built(tmp_path / "example", *toolchain)
    library = tmp_path / "library"
    emulation.call(["cmake", *toolchain, "-S", emulation.SOURCE, "-B", library])
    emulation.call(["cmake", "--build", library, "--parallel", "2", "--target", "fp4dit_ops"])
    machine = emulation.Machine.aarch64("max", emulation.Build(library), tmp_path)
    path = tmp_path / "picture.bmp"
    words = ["--library", machine.build.library, "--threads", "1", short, PROMPT, path]
    runtime = emulation.aarch64_runtime(tmp_path)
    emulation.call([*machine.emulator, programs / "text_to_image", "--runtime", runtime, *words])
    with Image.open(path) as picture:
        found = np.asarray(picture)
    assert psnr(found, draw(short)) > SAME_PICTURE_DB
    assert psnr(found, draw(short, "--seed", 1)) < SAME_PICTURE_DB
