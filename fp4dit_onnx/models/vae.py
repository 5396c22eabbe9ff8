"""Autoencoders of diffusers, as data."""

__all__ = ["older_vae_name"]

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
