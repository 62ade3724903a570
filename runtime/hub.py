"""Write a folder for the Hugging Face Hub: the unchanged bundle and a model card.

manifest.json stays at the top, so load() and the C++ tool accept the folder and its download.
Nothing is uploaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from save_deploy.bundle import MANIFEST, Manifest, sha256_of
from save_deploy.bundle_files import FileRecord, notes_on_reports
from save_deploy.errors import BundleError
from save_deploy.files import check_folder_target, new_folder
from save_deploy.runtime.hub_options import UNKNOWN_LICENSE, PublishOptions

CARD, SUMS, ATTRIBUTES = "README.md", "SHA256SUMS", ".gitattributes"
_MARK = "library_name: save-deploy"
_LARGE = ("*.onnx", "*.data", "*.npy", "*.plan", "*.png", "*.wav")
_TAGS = ("audio-visual-segmentation", "segment-anything", "onnx")


def publish(options: PublishOptions) -> tuple[str, ...]:
    """Write the folder atomically and return notes for the user.

    Raises BundleError for an incomplete or altered bundle, OutputError for the target.
    """
    manifest = Manifest.read(options.bundle)
    check_folder_target(options.out, force=options.force, is_ours=check_own_folder)
    manifest.verify(options.bundle)
    notes = notes_on_reports(options.bundle, manifest.files)
    left_out = {note.split(":")[0] for note in notes}
    taken = {name: record for name, record in manifest.files.items() if name not in left_out}
    is_ours = check_own_folder if options.force else None
    with new_folder(options.out, what="the folder", is_ours=is_ours) as folder:
        for name in (MANIFEST, *taken):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(options.bundle / name, target)
        report = (folder / "report.md").read_text() if "report.md" in taken else ""
        (folder / CARD).write_text(card(options, manifest, report))
        (folder / SUMS).write_text(_sums(taken, sha256_of(folder / MANIFEST)))
        (folder / ATTRIBUTES).write_text(
            "".join(f"{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in _LARGE)
        )
    return (*(f"left out: {note}" for note in notes), *_notes(options, manifest))


def check_own_folder(folder: Path) -> None:
    """Raise BundleError for a folder that `save-deploy publish` did not write."""
    path = folder / CARD
    if not path.is_file() or _MARK not in path.read_text(errors="replace")[:2000]:
        raise BundleError("the folder was not written by save-deploy publish")


def card(options: PublishOptions, manifest: Manifest, report: str) -> str:
    """Return the model card.

    report: text of the bundle's report.md with its table of backends; "" without one.
    """
    config, precision = manifest.config, manifest.precision["precision"]
    repo = options.repo or f"USER/{options.out.resolve().name}"
    title = f"{config.name} {config.res} px {precision}"
    batch = manifest.model.inputs[0].shape[0]
    sources = "\n".join(
        f"| {json.dumps(row['name'])[1:-1]} | {row['sha256']} |" for row in manifest.source["files"]
    )
    table = report.partition("\n")[2].strip() or "This bundle has no report."
    return _CARD.format(
        mark=_MARK,
        license=options.license,
        tags="\n".join(f"- {tag}" for tag in _TAGS),
        title=title,
        system=config.system,
        res=config.res,
        precision=precision,
        batch="" if batch == 1 else f", {batch} frames per call",
        table=table,
        repo=repo,
        folder=repo.rpartition("/")[2],
        sources=sources,
        versions=", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    )


def _sums(files: dict[str, FileRecord], manifest_sha256: str) -> str:
    """Return the hashes in the format of sha256sum -c."""
    sums = {MANIFEST: manifest_sha256} | {name: record.sha256 for name, record in files.items()}
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))


def _notes(options: PublishOptions, manifest: Manifest) -> Iterator[str]:
    if options.license == UNKNOWN_LICENSE:
        yield "the card says license: other; set the license of the weights with --license"
    if manifest.engines:
        files = ", ".join(entry["file"] for entry in manifest.engines)
        yield f"{files}: engines are code; on other machines load() runs them only with trust=True"


_CARD = """---
license: {license}
{mark}
pipeline_tag: image-segmentation
tags:
{tags}
---

# {title}

Masks the sounding pixels of a frame, from the frame and one second of sound. This is SAVE (`{system}`,
audio-visual segmentation on Segment Anything) as a bundle of save-deploy: two ONNX graphs at {res} px
in {precision}{batch}, with golden samples to verify them.

## Use

```
pip install "/path/to/save-deploy[cpu]" huggingface_hub    # a clone of save-deploy
hf download {repo} --local-dir {folder}
save-run {folder} film.mp4 -o masked.mp4
```

```python
import save_deploy

with save_deploy.load("{folder}") as segment:
    mask = segment(frame, waveform)  # uint8 (H,W,3) RGB, float (n,) 16 kHz mono -> bool (H,W)
```

The C++ runtime reads the same folder: `save-infer run {folder} frame.png sound.wav -o mask.png`.

## Compared with the eager model

{table}

## Files

`model.onnx` (frame and embedding to mask), `audio.onnx` (a second of sound to its embedding),
`manifest.json` (interface, preprocessing, sha256 of every file, checked on load), `golden/` and
`conformance/` (outputs of the exporter's eager model; `save-deploy verify {folder}` checks them).
`sha256sum -c SHA256SUMS` checks a download.

| made of | sha256 |
|---|---|
{sources}

Made with {versions}.
"""
