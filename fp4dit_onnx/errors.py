"""The errors that users meet.

    Fp4DitError
    |- UsageError            the request is wrong: exit code 2
    |  |- CheckpointError    the folder given is not a readable pipeline
    |  |- BundleError        the folder given is not a readable bundle
    |  |- MissingExtraError  an optional part of the package is not installed
    |  `- OutOfMemoryError   a device has too little memory for what is asked of it
    `- VerificationError     a bundle does not compute what it should: exit code 1

Every message says what was found, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CheckpointError",
    "Fp4DitError",
    "MissingExtraError",
    "OutOfMemoryError",
    "UsageError",
    "VerificationError",
]


class Fp4DitError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UsageError(Fp4DitError):
    """The user's request cannot be carried out as given."""

    exit_code = 2


class CheckpointError(UsageError):
    """A diffusers folder is incomplete, damaged or of an unknown family."""


class BundleError(UsageError):
    """A bundle folder is incomplete, damaged or of another version."""


class MissingExtraError(UsageError):
    """An optional dependency is absent.

    Args:
        package: the distribution that was looked for.
        extra: the extra of fp4dit-onnx that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed, and this command needs it: "
            f"run  pip install 'fp4dit-onnx[{extra}]'"
        )


class OutOfMemoryError(UsageError):
    """A device has too little memory for what is asked of it; with other settings it may do."""


class VerificationError(Fp4DitError):
    """Two evaluations of the same model disagree by more than their bound."""
