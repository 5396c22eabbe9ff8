"""Autoencoders of diffusers, as data."""

from fp4dit_onnx.families.interface import InputSpec, Interface

__all__ = ["DECODER", "VAES", "encoder", "older_vae_name"]

VAES = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderDC")
"""Classes of diffusers whose ``decode`` takes latents alone."""
DECODER = Interface(
    (InputSpec("latent_sample", "float32", ("batch", "latent_channels", "height", "width")),)
)
"""Of the half that makes images."""


def encoder(factor: int) -> Interface:
    """Of the half that takes images; `factor`: pixels a latent."""
    axes = ("batch", 3, "height", "width")
    return Interface(
        (InputSpec("image", "float32", axes, multiple=factor),), ("latent_parameters",)
    )


OLDER_NAMES = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
}
"""What published files call tensors that diffusers renames when it loads them."""


def older_vae_name(name: str) -> str:
    """What older files call the tensor of a VAE that diffusers calls `name`."""
    for new, old in OLDER_NAMES.items():
        name = name.replace(new, old)
    return name
