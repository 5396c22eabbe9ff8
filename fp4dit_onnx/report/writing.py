"""Writes reports: into a bundle, or anywhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from fp4dit_onnx.bundle.bundle import EVIDENCE, REPORT, Bundle, put_files
from fp4dit_onnx.bundle.manifest import Manifest
from fp4dit_onnx.errors import MissingExtraError, UsageError
from fp4dit_onnx.files import json_text, plain, write_text
from fp4dit_onnx.report.data import Evidence
from fp4dit_onnx.report.facts import Subject, open_subject
from fp4dit_onnx.system.outputs import written_whole
from fp4dit_onnx.system.progress import Reporter

__all__ = [
    "add_report",
    "comparison_html",
    "report_html",
    "report_of_export",
    "write_file",
]

PACKAGES = ("jinja2", "matplotlib")


def _check_packages() -> None:
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "report")


def report_html(bundle: Bundle, evidence: Evidence | None = None) -> str:
    """The page of one bundle.

    Args:
        bundle: the bundle.
        evidence: in place of what the bundle keeps.

    Raises:
        BundleError: the manifest or the evidence kept in the bundle is damaged.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    _check_packages()
    from fp4dit_onnx.report.pages import page_of
    from fp4dit_onnx.report.rendering import rendered

    subject = open_subject(bundle, bundle.folder.resolve().name, evidence)
    return rendered("report.html.j2", page_of(subject))


def comparison_html(first: Bundle, second: Bundle) -> str:
    """The page of two bundles side by side; raises as `report_html` does.

    Raises:
        UsageError: the same bundle twice.
    """
    _check_packages()
    from fp4dit_onnx.report.comparing import comparison_of
    from fp4dit_onnx.report.rendering import rendered

    return rendered("comparison.html.j2", comparison_of(*_named(first, second)))


def _named(first: Bundle, second: Bundle) -> tuple[Subject, Subject]:
    """Both bundles under what tells them apart: folder, else path."""
    folders = [bundle.folder.resolve() for bundle in (first, second)]
    if folders[0] == folders[1]:
        raise UsageError(f"{first.folder} is given twice: expected two bundles to compare")
    names = [folder.name for folder in folders]
    if names[0] == names[1]:
        names = [str(bundle.folder) for bundle in (first, second)]
    return open_subject(first, names[0]), open_subject(second, names[1])


def add_report(
    bundle: Bundle,
    evidence: Evidence | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Write report.html into a bundle, and report.json if there is new evidence.

    Args:
        bundle: the bundle.
        evidence: what was measured again; None renders what the bundle keeps.
        note: told of a lock that is taken over.

    Returns:
        The manifest, which lists the files as they are now.

    Raises:
        UsageError: see `put_files`, and `report_html`.
    """
    return put_files(bundle.folder, _contents(bundle, evidence), note)


def _contents(bundle: Bundle, evidence: Evidence | None) -> dict[str, bytes]:
    """The files of a report."""
    page = {REPORT: report_html(bundle, evidence).encode()}
    if evidence is None:
        return page
    return {EVIDENCE: json_text(plain(evidence)), **page}


def report_of_export(folder: Path, evidence: Evidence | None, reporter: Reporter) -> Manifest:
    """Write the report into a bundle that an export has just written; returns its manifest."""
    with reporter.stage("writing the report", 1) as advance:
        manifest = put_files(folder, _contents(Bundle.open(folder), evidence))
        advance(1)
    return manifest


def write_file(path: Path, text: str) -> None:
    """Write a page to its own file; raises as `written_whole` does."""
    with written_whole(path) as partial:
        write_text(partial, text)
