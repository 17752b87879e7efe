"""Where a program says that it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodes.version import REVISION_FILE, revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "tree/nodes").mkdir(parents=True)
    return tmp_path / "tree/nodes"


def git_folder(path: Path, head: str, **refs: str) -> Path:
    (path / "refs/heads").mkdir(parents=True)
    (path / "HEAD").write_text(head + "\n")
    for name, commit in refs.items():
        (path / "refs/heads" / name).write_text(commit + "\n")
    return path


def test_installed_package_without_a_note_says_nothing(package: Path) -> None:
    assert revision(package) == ""


def test_image_says_what_its_build_wrote(package: Path) -> None:
    (package / REVISION_FILE).write_text(COMMIT + "\n")
    assert revision(package) == "0123456789ab"


def test_note_that_is_no_commit_is_left_out(package: Path) -> None:
    (package / REVISION_FILE).write_text('main"} 1\n')
    assert revision(package) == ""


@pytest.mark.parametrize("head", ["ref: refs/heads/main", COMMIT])
def test_checkout_says_its_commit_on_a_branch_or_without_one(package: Path, head: str) -> None:
    git_folder(package.parent / ".git", head, main=COMMIT)
    assert revision(package) == "0123456789ab"


def test_packed_reference_is_found(package: Path) -> None:
    folder = git_folder(package.parent / ".git", "ref: refs/heads/main")
    (folder / "packed-refs").write_text(f"# pack-refs\n{OTHER_COMMIT} refs/heads/mainly\n{COMMIT} refs/heads/main\n")
    assert revision(package) == "0123456789ab"
    (folder / "packed-refs").write_text("# pack-refs\n")
    assert revision(package) == ""


def test_second_working_tree_is_found_through_the_first(package: Path, tmp_path: Path) -> None:
    first = git_folder(tmp_path / "first/.git", "ref: refs/heads/main", main=OTHER_COMMIT, side=COMMIT)
    own = git_folder(first / "worktrees/tree", "ref: refs/heads/side")
    (own / "commondir").write_text("../..\n")
    (package.parent / ".git").write_text(f"gitdir: {own}\n")
    assert revision(package) == "0123456789ab"
