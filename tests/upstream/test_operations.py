"""status, patch and unpatch on checkouts: all or nothing, again and back, and never by force."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.helpers.upstream_checkout import ERAS, contents, edit, git, make_checkout
from tgwui_k8s.errors import UsageError
from tgwui_k8s.patching.edits import State
from tgwui_k8s.patching.errors import ConflictError, PatchingError
from tgwui_k8s.patching.operations import diff, patch, status, unpatch
from tgwui_k8s.patching.series import choose, load_series
from tgwui_k8s.patching.store import Store

TEXT = "modules/text_generation.py"
SERVER = "server.py"
HOOKS = {
    "neuron_loader": {"neuron"},
    "cuda_free": {"device"},
    "generation": {"generation"},
    "json_logs": {"logs"},
    "probes": {"serving"},
    "stateless": {"storage"},
    "errors": {"errors"},
    "metrics": {"metrics"},
}
"""The module of hooks that each ability uses."""


@pytest.fixture(name="root", params=ERAS)
def _root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return make_checkout(tmp_path / "checkout", request.param)


@pytest.fixture(name="new")
def _new(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout", "new")


def states(root: Path) -> dict[str, State]:
    return {finding.patch.name: finding.state for finding in status(root).findings}


def test_every_ability_goes_in_and_comes_out_byte_by_byte(root: Path) -> None:
    """Applicable, applied, applicable again; git sees no difference in the end."""
    before = contents(root)
    assert set(states(root).values()) <= {State.APPLICABLE, State.NOT_NEEDED}

    plan = patch(root)

    assert set(states(root).values()) <= {State.APPLIED, State.NOT_NEEDED}
    assert set(git(root, "diff", "--name-only").split()) == set(plan.contents)
    assert "tgwui_k8s" not in git(root, "status", "--porcelain", "--untracked-files=all")
    assert sorted(unpatch(root)) == sorted(plan.contents)
    assert contents(root) == before
    assert git(root, "status", "--porcelain", "--ignored") == ""


def test_twice_is_once(new: Path) -> None:
    """The second time writes nothing, and the way back is the same."""
    before = contents(new)
    patch(new)
    once = {path: os.stat(new / path).st_mtime_ns for path in contents(new)}

    patch(new)

    assert {path: os.stat(new / path).st_mtime_ns for path in contents(new)} == once
    unpatch(new)
    assert contents(new) == before


def test_abilities_come_one_by_one_in_any_order(new: Path) -> None:
    """What comes of it is what comes of all at once."""
    for name in ("metrics", "json_logs", "neuron_loader"):
        patch(new, (name,))
    one_by_one = {path: text for path, text in contents(new).items() if ".tgwui" not in path}
    unpatch(new)

    patch(new, ("neuron_loader", "json_logs", "metrics"))

    at_once = {path: text for path, text in contents(new).items() if ".tgwui" not in path}
    assert at_once == one_by_one


def test_each_ability_alone_brings_what_it_needs_and_no_more(new: Path) -> None:
    """`--only` of each: it and its needs are applied, the others are not."""
    series = load_series()
    for ability in series:
        wanted = {chosen.name for chosen in choose(series, (ability.name,))}
        plan = patch(new, (ability.name,), dry_run=True)
        hooked = set(re.findall(r"tgwui_k8s_(\w+)\.", diff(new, plan)))
        assert set(plan.num_places) == wanted
        assert hooked <= set().union(*(HOOKS[name] for name in wanted))
        assert hooked >= HOOKS[ability.name] - {"device"}


def test_an_unknown_ability_is_named(new: Path) -> None:
    """With those that there are."""
    with pytest.raises(UsageError, match="no ability 'colour'; there are: neuron_loader"):
        patch(new, ("colour",))


def test_a_dry_run_writes_nothing_and_can_show_what_it_would(new: Path) -> None:
    """Not even a record."""
    before = contents(new)

    shown = diff(new, patch(new, dry_run=True))

    assert contents(new) == before
    assert "+@tgwui_k8s_metrics.queued(shared)" in shown


def test_uncommitted_changes_are_not_patched_over(new: Path) -> None:
    """Without --force; with it they survive, and the way back gives them back."""
    edit(new / SERVER, "Starting", "Beginning")
    before = contents(new)

    with pytest.raises(PatchingError, match=r"uncommitted changes \(server.py\)"):
        patch(new)
    assert contents(new) == before

    patch(new, force=True)
    assert "Beginning" in (new / SERVER).read_text()
    unpatch(new)
    assert contents(new) == before


def test_what_was_edited_after_patching_is_not_thrown_away(new: Path) -> None:
    """Neither a second patch nor the way back touches it; --force gives it up."""
    before = contents(new)
    patch(new)
    edit(new / SERVER, "Starting", "Beginning")
    edited = contents(new)

    with pytest.raises(PatchingError, match=r"server.py changed after patching"):
        unpatch(new)
    with pytest.raises(PatchingError, match=r"server.py changed after patching"):
        patch(new, ("metrics",))
    assert contents(new) == edited
    assert list(status(new).edited_since) == [SERVER]

    unpatch(new, force=True)
    assert contents(new) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """By what is missing."""
    with pytest.raises(UsageError, match=r"no checkout of text-generation-webui: server\.py"):
        status(tmp_path)


def test_a_lost_record_says_what_to_do(new: Path) -> None:
    """The edits are still seen in the code."""
    patch(new)
    for path in sorted((new / ".tgwui_k8s").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()

    assert states(new)["metrics"] is State.APPLIED
    with pytest.raises(PatchingError, match=r"git checkout -- \."):
        unpatch(new)


@pytest.mark.parametrize("at", [1, 9])
def test_a_file_that_cannot_be_written_leaves_all_as_they_were(
    new: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whichever of them it is."""
    before = contents(new)
    real, seen = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if "staging" in self.parts and self.suffix == ".py":
            seen.append(target)
            if len(seen) == at:
                raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)

    with pytest.raises(PatchingError, match="No space left on device; everything is as before"):
        patch(new)

    assert contents(new) == before


@pytest.mark.parametrize("command", [patch, unpatch])
def test_a_switch_that_was_killed_is_taken_back(
    new: Path, monkeypatch: pytest.MonkeyPatch, command: object
) -> None:
    """The next command, whichever it is, finds half of it."""
    before = contents(new)
    real, seen = Path.replace, []

    def killed(self: Path, target: Path) -> Path:
        if "staging" in self.parts:
            seen.append(target)
            if len(seen) == 4:
                raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            patch(new)
    assert contents(new) != before
    assert Store(new).record() is not None

    if command is unpatch:
        unpatch(new)
    else:
        patch(new)
        assert set(states(new).values()) <= {State.APPLIED, State.NOT_NEEDED}
        unpatch(new)
    assert contents(new) == before


def test_two_at_once_are_one(new: Path) -> None:
    """The second is told so."""
    from tgwui_k8s.patching.checkout import Checkout

    with Checkout(new).locked(), pytest.raises(PatchingError, match="another process"):
        patch(new)


def test_a_hook_that_changed_is_renewed_from_the_originals(new: Path) -> None:
    """A record of another version of this package: patched files as we left them, but older."""
    before = contents(new)
    plan = patch(new)
    older = {path: content + b"# older\n" for path, content in plan.contents.items()}
    Store(new).switch(tuple(ability.name for ability in load_series()), older)

    patch(new)

    assert all(b"# older" not in content for content in contents(new).values())
    unpatch(new)
    assert contents(new) == before


@pytest.mark.parametrize(
    ("path", "old", "new_text", "reason"),
    [
        (TEXT, "def _generate_reply(", "def _produce(", "has no function _generate_reply()"),
        (
            TEXT,
            "question, state, stopping_strings=None, is_chat=False, escape_html",
            "text, settings, escape_html",
            "_generate_reply() takes (text",
        ),
        ("modules/models.py", "load_func_map", "loaders", "table load_func_map with 'Transform"),
        ("modules/shared.py", "parser.parse_args()", "read()", "parser.parse_args() is not"),
        ("modules/callbacks.py", "raise StopIteration", "return None", "raise StopIteration in It"),
        (
            TEXT,
            "        return\n\n\ndef gen",
            "        x = 1\n\n\ndef gen",
            "does not end in return",
        ),
        ("modules/api/script.py", "host=server_addrs, ", "", "call of uvicorn.run(app, host=..."),
        (SERVER, "__name__", "__file__", 'if __name__ == "__main__" is not there'),
    ],
)
def test_drift_is_refused_by_the_name_of_the_seam(
    new: Path, path: str, old: str, new_text: str, reason: str
) -> None:
    """Renamed, moved, another signature, another shape: nothing is written."""
    edit(new / path, old, new_text)
    git(new, "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qam", "drift")
    before = contents(new)

    with pytest.raises((ConflictError, PatchingError)) as caught:
        patch(new)

    assert reason in str(caught.value)
    assert path in str(caught.value)
    assert contents(new) == before


def test_a_file_that_moved_is_named(new: Path) -> None:
    """In status as well, with the abilities that it ends."""
    git(new, "mv", "modules/callbacks.py", "modules/iterators.py")

    found = {finding.patch.name: finding for finding in status(new).findings}

    assert found["generation"].state is State.CONFLICT
    assert found["generation"].reasons == ("there is no modules/callbacks.py",)
    assert found["metrics"].state is State.APPLICABLE


def test_a_seam_that_is_there_twice_is_a_conflict(new: Path) -> None:
    """Nobody can tell which is meant."""
    with (new / TEXT).open("a") as file:
        file.write("\n\ndef _generate_reply(question, state):\n    yield ''\n")

    found = {finding.patch.name: finding for finding in status(new).findings}

    assert found["metrics"].reasons == (f"{TEXT} has 2 functions _generate_reply()",)


def test_line_ends_and_encodings_stay(new: Path) -> None:
    """A file with CR LF keeps it, in the lines of ours as well."""
    text = (new / TEXT).read_bytes().replace(b"\n", b"\r\n")
    (new / TEXT).write_bytes(text)
    patch(new, force=True)

    patched = (new / TEXT).read_bytes()
    assert patched.count(b"\n") == patched.count(b"\r\n") > text.count(b"\r\n")
    unpatch(new)
    assert (new / TEXT).read_bytes() == text


def test_code_that_cannot_be_read_is_named(new: Path) -> None:
    """And nothing of ours is a traceback."""
    (new / TEXT).write_text("def broken(:\n")

    with pytest.raises(PatchingError, match="is no Python that can be read"):
        status(new)
