"""The text encoder and the autoencoder's decoder as ONNX, against torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from fp4dit_onnx.components import export_text_encoder, export_vae_decoder
from fp4dit_onnx.errors import UsageError
from fp4dit_onnx.ops import IR_VERSION, OPSET
from fp4dit_onnx.runtime import session

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")

Agree = Callable[[npt.NDArray[Any], npt.NDArray[Any], float], None]

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# Rounding of float32 in a network of depth d, each layer a sum of some hundred terms: about
# sqrt(d) * sqrt(terms) * 6e-8 of the largest value, which for the text encoder (10 matrix products
# deep, 256 terms) and the decoder (25 convolutions, 576 terms) is 3e-6 to 7e-6. A wrong mask, a
# shifted position bias or another resampling changes values by 1e-2 and more.
NETWORK_ROUNDING = 1e-5


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 16), (3, 5), (2, 120), (5, 33)])
def test_text_encoder_is_torchs(
    agree: Agree, bundle: Path, torch_pipeline: Any, batch: int, length: int
) -> None:
    generator = np.random.default_rng(length)
    ids = generator.integers(0, 3000, (batch, length))
    kept = generator.integers(1, length + 1, (batch, 1))
    mask = (np.arange(length) < kept).astype(np.int64)  # [B, L]: each row padded elsewhere
    with torch.no_grad():
        expected = torch_pipeline.text_encoder(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        )[0].numpy()
    encoder = session(bundle / "text_encoder" / "model.onnx", library=False)
    (found,) = encoder.run(None, {"input_ids": ids, "attention_mask": mask})
    agree(found, expected, NETWORK_ROUNDING)


SIZES = [(1, 16, 16), (2, 16, 16), (3, 5, 20), (1, 1, 1)]


def check_decoder(agree: Agree, path: Path, vae: Any, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    latents = np.random.default_rng(height).standard_normal((batch, 4, height, width))
    latents = latents.astype(np.float32)
    with torch.no_grad():
        expected = vae.decode(torch.from_numpy(latents), return_dict=False)[0].numpy()
    (found,) = session(path, library=False).run(None, {"latent_sample": latents})
    agree(found, expected, NETWORK_ROUNDING)


@pytest.mark.parametrize("size", SIZES)
def test_vae_decoder_is_torchs(
    agree: Agree, bundle: Path, torch_pipeline: Any, size: tuple[int, int, int]
) -> None:
    check_decoder(agree, bundle / "vae_decoder" / "model.onnx", torch_pipeline.vae, size)


def test_vae_decoder_with_attention(agree: Agree, demo_copy: Path, tmp_path: Path) -> None:
    """The published autoencoders have an attention block, the demo's has none."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()
    vae.save_pretrained(demo_copy / "vae")
    export_vae_decoder(demo_copy, tmp_path / "out")
    for size in SIZES:
        check_decoder(agree, tmp_path / "out" / "model.onnx", vae, size)


@pytest.mark.parametrize("part", ["text_encoder", "vae_decoder"])
def test_components_stay_loadable_by_old_runtimes(bundle: Path, part: str) -> None:
    model = onnx.load(bundle / part / "model.onnx")
    assert model.ir_version == IR_VERSION
    assert {(o.domain, o.version) for o in model.opset_import} == {("", OPSET)}
    assert b"site-packages" not in model.SerializeToString()  # no trace of where it was made
    assert json.loads((bundle / part / "config.json").read_text())


def test_components_refuse_other_classes(demo_copy: Path, tmp_path: Path) -> None:
    index = json.loads((demo_copy / "model_index.json").read_text())
    index["text_encoder"][1] = "CLIPTextModel"
    (demo_copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="CLIPTextModel is not supported: expected one of T5Enc"):
        export_text_encoder(demo_copy, tmp_path / "out")


def test_comparator_fails_where_it_should(agree: Agree) -> None:
    right = np.array([[1.0, -2.0]], np.float32)
    agree(right * np.float32(1 + 1e-6), right, NETWORK_ROUNDING)
    for wrong in (-right, right * np.float32(1.001), right * np.float32(np.nan), right[:, :1]):
        with pytest.raises(AssertionError):
            agree(wrong, right, NETWORK_ROUNDING)
