"""Removal of prefixes from stored tensor names: wrapped models, losses beside the model.

Everything that is removed is named, so that inspect and load can report it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from save_deploy.errors import CheckpointError

# prefixes of DataParallel, Lightning-like wrappers and GAVS's AVSM, for models without known names
PREFIXES = ("module.", "model.", "model_v.", "net.", "network.", "sam.", "ema.")
# torch.compile, FSDP and activation checkpointing insert these anywhere in a name
_INSERTED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Names in every layout with an image encoder, then names in VGGish; text before them is the prefix
_ANCHORS = (
    ("image_encoder.patch_embed.proj.weight",),
    ("embeddings.0.weight", "features.0.weight"),
)
_COPY = re.compile(r"ema|teacher|shadow|average|target", re.IGNORECASE)  # copies of a model
_LOSS = re.compile(r"(criterion|loss\w*|metrics?)\.")


@dataclass(frozen=True)
class BareNames:
    """Names without prefix.

    names: stored name -> bare name.
    prefix: the removed prefix.
    beside: stored names that do not belong to the model.
    """

    names: dict[str, str]
    prefix: str
    beside: tuple[str, ...]


def bare_names(stored: Iterable[str]) -> BareNames:
    """Find the model among the names. Raises CheckpointError when there is more than one."""
    plain = {name: _INSERTED.sub("", name) for name in stored}
    if len(set(plain.values())) < len(plain):  # two names would become equal
        plain = {name: name for name in plain}
    root = _root(set(plain.values()))
    if root is None:
        return _without_shared(plain)
    beside = {k for k, v in plain.items() if not v.startswith(root) or _LOSS.match(v)}
    names = {k: v.removeprefix(root) for k, v in plain.items() if k not in beside}
    return _bare(names, tuple(k for k in plain if k in beside))


def _root(names: set[str]) -> str | None:
    """Return the prefix of a known model, or None when there is no known model."""
    for first, *others in _ANCHORS:
        roots = {n.removesuffix(first) for n in names if n.endswith(first)}
        roots = {
            r for r in roots if (not r or r[-1] == ".") and all(r + o in names for o in others)
        }
        if len(roots) > 1:
            roots = {r for r in roots if not _COPY.search(r)} or roots
        if len(roots) > 1:
            raise CheckpointError(
                "several models in one checkpoint",
                got=", ".join(sorted(r or "names without a prefix" for r in roots)),
                expected="one",
                hint="save only one of them, or choose with save-deploy checkpoint convert --map",
            )
        if roots:
            return roots.pop()
    return None


def _without_shared(plain: dict[str, str]) -> BareNames:
    """Return names of an unknown model without the prefixes that all of them share."""
    while plain:
        prefix = next((p for p in PREFIXES if all(v.startswith(p) for v in plain.values())), None)
        if prefix is None:
            break
        plain = {k: v.removeprefix(prefix) for k, v in plain.items()}
    return _bare(plain)


def _bare(names: dict[str, str], beside: tuple[str, ...] = ()) -> BareNames:
    stored, bare = next(iter(names.items()), ("", ""))
    return BareNames(names, stored.removesuffix(bare) if stored.endswith(bare) else "", beside)
