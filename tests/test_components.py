"""The text encoders and the autoencoder's decoder as ONNX, against torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from random_pipeline import make

from fp4dit_onnx.bundle.model_file import ModelFile
from fp4dit_onnx.bundle.probe import load_model, read_state
from fp4dit_onnx.bundle.skeleton import placeholder
from fp4dit_onnx.checkpoint.checkpoint import open_checkpoint
from fp4dit_onnx.errors import CheckpointError, Fp4DitError, UsageError
from fp4dit_onnx.exporting.component_writing import ComponentWriter
from fp4dit_onnx.exporting.components import write_vae
from fp4dit_onnx.exporting.export import ExportRequest, plan
from fp4dit_onnx.exporting.text_encoders import encoder_bytes, encoder_recipe, write_encoder
from fp4dit_onnx.network.networks import VaeDecoder, VaeEncoder
from fp4dit_onnx.numbers.compare import sqnr_db
from fp4dit_onnx.ops import IR_VERSION, LINEAR, OPSET
from fp4dit_onnx.runtime import session
from fp4dit_onnx.system.progress import SilentReporter
from fp4dit_onnx.system.resources import Resources

pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third parties' deprecations at import
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")

Array = npt.NDArray[Any]
Agree = Callable[[Array, Array, float], None]


# Rounding of float32 in a network of depth d, each layer a sum of some hundred terms: about
# sqrt(d) * sqrt(terms) * 6e-8 of the largest value, which for the text encoders (10 matrix products
# deep, 256 terms) and the decoder (25 convolutions, 576 terms) is 3e-6 to 7e-6. A wrong mask, a
# shifted position bias or another resampling changes values by 1e-2 and more.
NETWORK_ROUNDING = 1e-5
GROUP = 128
OUTPUTS = {
    "BertModel": ["last_hidden_state"],
    "CLIPTextModel": ["last_hidden_state", "pooler_output"],
    "T5EncoderModel": ["last_hidden_state"],
}


def writer(folder: Path) -> ComponentWriter:
    """Into an empty bundle."""
    folder.mkdir()
    return ComponentWriter(folder, None, "fused", SilentReporter(), Resources())


def token_ids(batch: int, length: int, vocabulary: int) -> tuple[Array, Array]:
    """Random ids, and a mask that pads each row elsewhere; both [batch, length]."""
    generator = np.random.default_rng(length)
    kept = generator.integers(1, length + 1, (batch, 1))
    mask = (np.arange(length) < kept).astype(np.int64)
    return generator.integers(0, vocabulary, (batch, length)), mask


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 16), (3, 5), (2, 120), (5, 33)])
def test_text_encoder_is_torchs(
    agree: Agree, bundle: Path, torch_pipeline: Any, batch: int, length: int
) -> None:
    ids, mask = token_ids(batch, length, 3000)
    with torch.no_grad():
        expected = torch_pipeline.text_encoder(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        )[0].numpy()
    encoder = session(bundle / "text_encoder" / "model.onnx", library=False)
    (found,) = encoder.run(None, {"input_ids": ids, "attention_mask": mask})
    agree(found, expected, NETWORK_ROUNDING)


@pytest.fixture(scope="module", params=["hunyuan-dit-1.1", "flux-dev"])
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline with a T5 and another text encoder."""
    folder = tmp_path_factory.mktemp("twin") / "pipeline"
    make(request.param, folder, twin=True)
    return folder


def loaded(folder: Path, class_name: str) -> Any:
    """The encoder in `folder` as transformers loads it."""
    transformers.utils.logging.disable_progress_bar()
    cls = getattr(transformers, class_name)
    return cls.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_float_encoders_are_transformers_own(
    agree: Agree, twin: Path, tmp_path: Path, part: str
) -> None:
    """Streamed from the files, every output, padded rows included."""
    component = open_checkpoint(twin).components[part]
    write_encoder(component, None, "absmax", writer(tmp_path / "out"))
    ids, mask = token_ids(2, 21, 50)
    network = loaded(component.folder, component.class_name)
    with torch.no_grad():
        wanted = network(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    encoder = session(tmp_path / "out" / part / "model.onnx", library=False)
    outputs = OUTPUTS[component.class_name]
    assert [o.name for o in encoder.get_outputs()] == outputs
    results = encoder.run(None, {"input_ids": ids, "attention_mask": mask})
    for name, found in zip(outputs, results, strict=True):
        agree(found, wanted[name].numpy(), NETWORK_ROUNDING)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_weight_only_encoders_compute_with_their_codes(
    agree: Agree, twin: Path, tmp_path: Path, part: str
) -> None:
    """The bundle's encoder is transformers' own with the weights that the codes stand for."""
    component = open_checkpoint(twin).components[part]
    recipe = encoder_recipe(component, "w4a16", GROUP)
    entry = write_encoder(component, recipe, "absmax", writer(tmp_path / "out"))
    path = tmp_path / "out" / part / "model.onnx"
    state = read_state(load_model(path))
    assert set(state.layers) == set(entry.layers)
    assert all(
        row.bytes_float32 == 4 * prod(row.shape) > row.bytes for row in entry.layers.values()
    )
    assert {layer.spec.formats[1] for layer in state.layers.values()} == {None}
    network = loaded(component.folder, component.class_name)
    linears = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)]
    assert set(linears) - set(state.layers) <= {"pooler.dense"}
    with torch.no_grad():
        for tensor in network.parameters():  # what stays in float is stored as float16 if large
            if tensor.numel() >= 4096:
                tensor.copy_(tensor.half().float())
        for name, layer in state.layers.items():
            network.get_submodule(name).weight.copy_(torch.from_numpy(layer.weight()))
        ids, mask = token_ids(2, 21, 50)
        wanted = network(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0].numpy()
    feed = {"input_ids": ids, "attention_mask": mask}
    for library in (True, False):
        agree(session(path, library=library).run(None, feed)[0], wanted, NETWORK_ROUNDING)


def test_quantized_activations_of_an_encoder(twin: Path, tmp_path: Path) -> None:
    """w8a8: every linear is an FpLinear on integers, and the output stays near the float one."""
    component = open_checkpoint(twin).components["text_encoder_2"]
    ids, mask = token_ids(2, 21, 50)
    found = {}
    for bits in ("none", "w8a8"):
        recipe = encoder_recipe(component, bits, GROUP)
        write_encoder(component, recipe, "absmax", writer(tmp_path / bits))
        path = tmp_path / bits / "text_encoder_2" / "model.onnx"
        feed = {"input_ids": ids, "attention_mask": mask}
        found[bits] = session(path).run(None, feed)[0]
        model = load_model(path)
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count(LINEAR) == len(read_state(model).layers) == (14 if recipe else 0)
    assert 20 < sqnr_db(found["none"], found["w8a8"]) < 60


def test_encoders_of_a_gibibyte_are_quantized_unless_told_otherwise(
    demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    component = open_checkpoint(demo_folder).components["text_encoder"]
    assert encoder_recipe(component, None, GROUP) is None
    monkeypatch.setattr("fp4dit_onnx.exporting.text_encoders.FLOAT_BELOW", 1)
    chosen = encoder_recipe(component, None, GROUP)
    assert chosen is not None
    assert (chosen.bits, chosen.activation) == ("w4a16", None)
    assert encoder_recipe(component, "none", GROUP) is None
    assert encoder_bytes(component, chosen) < encoder_bytes(component, None) / 2


def test_encoder_bytes_foretell_the_file(twin: Path, tmp_path: Path) -> None:
    component = open_checkpoint(twin).components["text_encoder_2"]
    recipe = encoder_recipe(component, "w4a16", GROUP)
    write_encoder(component, recipe, "absmax", writer(tmp_path / "out"))
    size = (tmp_path / "out" / "text_encoder_2" / "model.onnx.data").stat().st_size
    assert size == pytest.approx(encoder_bytes(component, recipe), rel=0.1)


def test_values_that_float16_cannot_store_are_refused(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.graph.initializer.append(placeholder("table", (40, 40), onnx.TensorProto.FLOAT16))
    values = np.full((40, 40), 70000, np.float32)
    with (
        ModelFile(tmp_path / "model.onnx") as file,
        pytest.raises(Fp4DitError, match=r"tensor table holds 70000, more than float16 can store"),
    ):
        file.write(model, lambda name: values)


SIZES = [(1, 16, 16), (2, 16, 16), (3, 5, 20), (1, 1, 1)]


def check_vae(agree: Agree, bundle: Path, vae: Any, size: tuple[int, int, int]) -> None:
    """Both halves in `bundle` are those of `vae` with its large tensors rounded to float16."""
    batch, height, width = size
    factor, channels = 2 ** (len(vae.config.block_out_channels) - 1), vae.config.latent_channels
    generator = np.random.default_rng(height)
    latents = generator.standard_normal((batch, channels, height, width)).astype(np.float32)
    images = generator.uniform(-1, 1, (batch, 3, height * factor, width * factor))
    images = images.astype(np.float32)
    before = {name: p.clone() for name, p in vae.named_parameters()}
    with torch.no_grad():
        for tensor in vae.parameters():
            if tensor.numel() >= 4096:
                tensor.copy_(tensor.half().float())
        decoded = vae.decode(torch.from_numpy(latents), return_dict=False)[0].numpy()
        encoded = vae.encode(torch.from_numpy(images), return_dict=False)[0]
        for name, p in vae.named_parameters():
            p.copy_(before[name])
    for half, given, expected in (
        ("vae_decoder", {"latent_sample": latents}, decoded),
        ("vae_encoder", {"image": images}, encoded.parameters.numpy()),
    ):
        (found,) = session(bundle / half / "model.onnx", library=False).run(None, given)
        agree(found, expected, NETWORK_ROUNDING)


@pytest.mark.parametrize("size", SIZES)
def test_vae_is_torchs(
    agree: Agree, bundle: Path, torch_pipeline: Any, size: tuple[int, int, int]
) -> None:
    check_vae(agree, bundle, torch_pipeline.vae, size)


@pytest.mark.parametrize("older", [False, True])
def test_vae_with_attention(agree: Agree, demo_copy: Path, tmp_path: Path, older: bool) -> None:
    """The published autoencoders have an attention block, under older names; the demo's has none."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).eval()
    vae.save_pretrained(demo_copy / "vae")
    if older:
        from safetensors.torch import load_file, save_file

        path = demo_copy / "vae" / "diffusion_pytorch_model.safetensors"
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = load_file(path)
        for new, old in names.items():
            tensors = {n.replace(f".{new}.", f".{old}."): t for n, t in tensors.items()}
        assert "decoder.mid_block.attentions.0.query.weight" in tensors
        assert "encoder.mid_block.attentions.0.query.weight" in tensors
        save_file(tensors, path, metadata={"format": "pt"})
    write_vae(open_checkpoint(demo_copy).components["vae"], writer(tmp_path / "out"))
    for size in SIZES:
        check_vae(agree, tmp_path / "out", vae, size)


def test_flux_2s_encoder_gives_normalized_means(agree: Agree) -> None:
    """As its inpainting pipeline encodes: the mean, in squares that statistics normalize."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein_inpaint import Flux2KleinInpaintPipeline

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    image = torch.rand(1, 3, 16, 24) * 2 - 1
    pipeline = SimpleNamespace(
        vae=vae, _patchify_latents=Flux2KleinInpaintPipeline._patchify_latents
    )
    with torch.no_grad():
        wanted = Flux2KleinInpaintPipeline._encode_vae_image(pipeline, image, None)
        (found,) = VaeEncoder(vae)(image)
        (decoded,) = VaeDecoder(vae)(found)
        mean = vae.encode(image).latent_dist.mode()
        agree(decoded.numpy(), vae.decode(mean).sample.numpy(), NETWORK_ROUNDING)
    squares = torch.nn.functional.pixel_unshuffle(found, 2)
    agree(squares.numpy(), wanted.numpy(), NETWORK_ROUNDING)


def test_vae_decoder_is_stored_in_half_the_bytes(
    bundle: Path, torch_pipeline: Any, tmp_path: Path
) -> None:
    decoder = torch_pipeline.vae.decoder.parameters()
    size = (bundle / "vae_decoder" / "model.onnx.data").stat().st_size
    assert size < 0.6 * sum(4 * p.numel() for p in decoder)


@pytest.mark.parametrize("part", ["text_encoder", "vae_decoder"])
def test_components_stay_loadable_by_old_runtimes(bundle: Path, part: str) -> None:
    model = onnx.load(bundle / part / "model.onnx")
    assert model.ir_version == IR_VERSION
    assert {(o.domain, o.version) for o in model.opset_import} == {("", OPSET)}
    assert b"site-packages" not in model.SerializeToString()  # no trace of where it was made
    assert json.loads((bundle / part / "config.json").read_text())


@pytest.mark.parametrize(
    ("part", "other", "message"),
    [
        ("text_encoder", "OPTModel", "text_encoder of class OPTModel is not"),
        ("vae", "AutoencoderTiny", "VAE of class AutoencoderTiny is not supported"),
    ],
)
def test_components_of_other_classes_are_refused(
    demo_copy: Path, tmp_path: Path, part: str, other: str, message: str
) -> None:
    """Before anything is loaded; the transformer alone can still be exported."""
    index = json.loads((demo_copy / "model_index.json").read_text())
    index[part][1] = other
    (demo_copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=message):
        plan(ExportRequest(tmp_path / "out", demo_copy))
    plan(ExportRequest(tmp_path / "out", demo_copy, method="fp-rtn", components="transformer"))


def test_an_encoder_that_does_not_fit_its_config_is_refused(
    demo_copy: Path, tmp_path: Path
) -> None:
    path = demo_copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "d_model": config["d_model"] * 2}))
    component = open_checkpoint(demo_copy).components["text_encoder"]
    with pytest.raises(CheckpointError, match=r"has shape .*, T5EncoderModel of this config.json"):
        write_encoder(component, None, "absmax", writer(tmp_path / "out"))


def test_comparator_fails_where_it_should(agree: Agree) -> None:
    right = np.array([[1.0, -2.0]], np.float32)
    agree(right * np.float32(1 + 1e-6), right, NETWORK_ROUNDING)
    for wrong in (-right, right * np.float32(1.001), right * np.float32(np.nan), right[:, :1]):
        with pytest.raises(AssertionError):
            agree(wrong, right, NETWORK_ROUNDING)
