"""The commands on a checkout: what is the case, patch, take back."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from tgwui_k8s.patching.checkout import Checkout
from tgwui_k8s.patching.edits import State
from tgwui_k8s.patching.errors import PatchingError
from tgwui_k8s.patching.plan import Finding, Plan, examine, make_plan, reader
from tgwui_k8s.patching.series import Patch, choose, load_series
from tgwui_k8s.patching.store import FOLDER, Store


@dataclass(frozen=True)
class Status:
    """What `status` shows."""

    version: str
    findings: tuple[Finding, ...]
    edited_since: tuple[str, ...]


def status(root: Path, series: tuple[Patch, ...] | None = None) -> Status:
    """What every ability is in this checkout."""
    checkout = Checkout(root)
    findings = examine(reader(root), load_series() if series is None else series)
    return Status(checkout.version(), tuple(findings), tuple(Store(root).edited_since()))


def patch(
    root: Path,
    names: tuple[str, ...] = (),
    *,
    force: bool = False,
    dry_run: bool = False,
    series: tuple[Patch, ...] | None = None,
) -> Plan:
    """Apply abilities, and what they need, beside those that are there; all where none is named.

    Always made anew from the files as they were before any patch, so that a later version of this
    package renews its own edits. `force` patches over uncommitted changes.
    Raises `ConflictError`, `PatchingError`, `UsageError`; then nothing was written.
    """
    checkout, store = Checkout(root), Store(root)
    every = load_series() if series is None else series
    choose(every, names)
    with checkout.locked():
        if not dry_run:
            store.recover()
        record = store.record()
        present = record.abilities if record is not None else ()
        known = tuple(name for name in present if name in {ability.name for ability in every})
        wanted = choose(every, (*names, *known)) if names else every
        _refuse_edited(store, root)
        ours = record.files if record is not None else {}
        dirty = [path for path in checkout.dirty_files() if path not in ours]
        if dirty and not force:
            raise PatchingError(
                f"{root} has uncommitted changes ({', '.join(dirty[:5])}): commit them, or --force"
            )
        read = reader(root)
        plan = make_plan(lambda path: store.original(path) or read(path), wanted)
        changed = any(read(path) != content for path, content in plan.contents.items())
        abilities = tuple(ability.name for ability in wanted)
        is_new = changed or set(ours) != set(plan.contents) or abilities != present
        if is_new and plan.contents and not dry_run:
            store.switch(abilities, plan.contents)
    return plan


def unpatch(root: Path, *, force: bool = False) -> list[str]:
    """Put every file back as it was. Returns their paths.

    Raises `PatchingError` where a patched file was edited since: `force` gives those edits up.
    """
    checkout, store = Checkout(root), Store(root)
    with checkout.locked():
        if store.recover():
            return []
        if store.record() is None:
            if any(finding.num_applied for finding in examine(reader(root), load_series())):
                raise PatchingError(
                    f"{root} is patched, but its record {FOLDER}/ is gone: restore the files with "
                    "'git checkout -- .'"
                )
            return []
        if not force:
            _refuse_edited(store, root)
        return store.restore()


def diff(root: Path, plan: Plan) -> str:
    """What a plan would change, for the eye."""
    lines: list[str] = []
    for path, content in sorted(plan.contents.items()):
        now = (root / path).read_bytes()
        lines += difflib.unified_diff(
            now.decode("utf-8", "replace").splitlines(keepends=True),
            content.decode("utf-8", "replace").splitlines(keepends=True),
            f"a/{path}",
            f"b/{path}",
        )
    return "".join(lines)


def is_applied(finding: Finding) -> bool:
    """Whether an ability is there, or not needed."""
    return finding.state in (State.APPLIED, State.NOT_NEEDED)


def _refuse_edited(store: Store, root: Path) -> None:
    edited = store.edited_since()
    if edited:
        raise PatchingError(
            f"{', '.join(edited)} changed after patching: keep a copy of what you changed, then "
            f"'tgwui-k8s upstream unpatch --force {root}' gives the originals back"
        )
