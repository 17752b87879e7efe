"""Who vouches for a bundle: made, signed and asked for as a user does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodes.bundle_cache import BundleCache
from nodes.cli import main, node_main
from nodes.lifecycle import EXIT_OK, EXIT_USAGE
from pipeline.bundle import SIGNATURE_FILE, load_bundle, read_contents, seal_bundle
from pipeline.bundle_delivery import pack_node_part, parse_node_part
from pipeline.errors import BundleSignatureError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of the user's own."""
    default = load_bundle("default")
    seal_bundle(tmp_path / "mine", default.manifest.model_copy(update={"name": "mine"}), default.files)
    return tmp_path / "mine"


@pytest.fixture
def signer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """File of a key that signs, and its public key."""
    path = tmp_path / "keys" / "bundles.signer"
    assert main(["bundle", "signer", "--key", str(path), "--json"]) == EXIT_OK
    return path, json.loads(capsys.readouterr().out)["key"]


def node_files(bundle: Path) -> dict[str, bytes]:
    """The bundle as it comes to a node."""
    contents = read_contents(bundle)
    return parse_node_part(load_bundle(str(bundle)).bundle_id, pack_node_part(contents))


def test_signed_bundle_is_the_same_bundle_and_taken_by_who_trusts_its_signer(
    bundle: Path, signer: tuple[Path, str], tmp_path: Path
) -> None:
    path, public = signer
    before = load_bundle(str(bundle)).bundle_id
    assert main(["bundle", "sign", str(bundle), "--key", str(path)]) == EXIT_OK
    assert main(["bundle", "verify", str(bundle)]) == EXIT_OK
    assert load_bundle(str(bundle)).bundle_id == before
    cache = BundleCache(tmp_path / "cache", [bytes(32), bytes.fromhex(public)])
    assert cache.store(before, node_files(bundle)).bundle_id == before
    assert cache.load(before) is not None


def test_bundle_that_nobody_trusted_has_signed_is_refused_and_leaves_nothing(
    bundle: Path, signer: tuple[Path, str], tmp_path: Path
) -> None:
    path, public = signer
    bundle_id = load_bundle(str(bundle)).bundle_id
    cache = BundleCache(tmp_path / "cache", [bytes.fromhex(public)])
    with pytest.raises(BundleSignatureError, match="not signed"):
        cache.store(bundle_id, node_files(bundle))
    (bundle / SIGNATURE_FILE).write_bytes(b"ab" * 64)
    with pytest.raises(BundleSignatureError, match="none of"):
        cache.store(bundle_id, node_files(bundle))
    assert list((tmp_path / "cache" / "bundles").iterdir()) == []
    # One that is in the cache already is asked for its signature too.
    BundleCache(tmp_path / "cache").store(bundle_id, node_files(bundle))
    assert cache.load(bundle_id) is None
    main(["bundle", "sign", str(bundle), "--key", str(path)])
    assert cache.store(bundle_id, node_files(bundle)).bundle_id == bundle_id


def test_signature_of_one_bundle_is_none_of_another(bundle: Path, signer: tuple[Path, str], tmp_path: Path) -> None:
    path, public = signer
    main(["bundle", "sign", str(bundle), "--key", str(path)])
    whole = load_bundle(str(bundle))
    seal_bundle(tmp_path / "other", whole.manifest.model_copy(update={"name": "other"}), whole.files)
    (tmp_path / "other" / SIGNATURE_FILE).write_bytes((bundle / SIGNATURE_FILE).read_bytes())
    other = load_bundle(str(tmp_path / "other"))
    with pytest.raises(BundleSignatureError):
        BundleCache(tmp_path / "c", [bytes.fromhex(public)]).store(other.bundle_id, node_files(tmp_path / "other"))


def test_new_seal_takes_the_old_signature_away(bundle: Path, signer: tuple[Path, str]) -> None:
    main(["bundle", "sign", str(bundle), "--key", str(signer[0])])
    whole = load_bundle(str(bundle))
    assert whole.signature is not None
    seal_bundle(bundle, whole.manifest.model_copy(update={"name": "changed"}), whole.files)
    assert load_bundle(str(bundle)).signature is None


def test_secret_key_is_its_owners_alone(signer: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = signer
    assert path.stat().st_mode & 0o777 == 0o600
    assert main(["bundle", "signer", "--key", str(path)]) == EXIT_USAGE
    assert "is there already" in capsys.readouterr().err
    path.chmod(0o644)
    assert main(["bundle", "sign", "default", "--key", str(path)]) == EXIT_USAGE
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "ab", "no hex at all"])
def test_file_that_holds_no_key_is_named(bundle: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle.parent / "bad.signer"
    path.touch(mode=0o600)
    path.write_text(content)
    for key in (path, bundle.parent / "absent"):
        assert main(["bundle", "sign", str(bundle), "--key", str(key)]) == EXIT_USAGE
        assert str(key) in capsys.readouterr().err
    assert not (bundle / SIGNATURE_FILE).exists()


def test_bundles_from_another_machine_must_be_signed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--camera", "test:", "--cloud", "tcp://192.0.2.1:5570", "--insecure", "--bundle", "auto", "--check-config"]
    assert node_main(words) == EXIT_USAGE
    assert "bundle.trusted_keys" in capsys.readouterr().err
    assert node_main([*words, "--trusted-key", "ab" * 32]) == EXIT_OK
    assert node_main([*words, "--trusted-key", "short"]) == EXIT_USAGE
