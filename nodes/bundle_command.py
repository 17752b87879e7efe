"""`rac bundle`: look into a bundle, verify every byte of it, or vouch for it."""

from __future__ import annotations

import argparse
import json
import secrets
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nodes.key_files import OTHERS, SECRET_MODE, write_whole
from nodes.lifecycle import EXIT_OK
from pipeline.bundle import SIGNATURE_FILE, Bundle, find_bundle, load_bundle
from pipeline.bundle_signature import sign_bundle
from pipeline.ed25519 import KEY_BYTES, public_key
from pipeline.errors import ConfigError


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: action (show, verify, sign or signer), bundle, key, json.
    """
    if args.action == "signer":
        _make_signer(Path(args.key), as_json=args.json)
        return EXIT_OK
    bundle = load_bundle(args.bundle)  # verifies; an error names what is wrong
    path = find_bundle(args.bundle)
    if args.action == "sign":
        _sign(bundle, path, Path(args.key), as_json=args.json)
    elif args.json:
        print(json.dumps({"id": bundle.bundle_id.hex(), "path": str(path), **bundle.manifest.model_dump(mode="json")}))
    elif args.action == "verify":
        print(f"{path}: {len(bundle.files)} files are as sealed, id {bundle.bundle_id.hex()}")
    else:
        _show(bundle, str(path))
    return EXIT_OK


def _make_signer(path: Path, *, as_json: bool) -> None:
    """Make the secret key that signs bundles, and say its public one."""
    if path.exists():
        raise ConfigError(path, "", "is there already: name another file with --key, or remove it for good")
    secret = secrets.token_bytes(KEY_BYTES)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, secret.hex() + "\n", SECRET_MODE)
    except OSError as error:
        raise ConfigError(path, "", f"cannot be written: {error.strerror or error}") from error
    _say_signer(path, secret, as_json=as_json)


def _say_signer(path: Path, secret: bytes, *, as_json: bool) -> None:
    public = public_key(secret).hex()
    if as_json:
        print(json.dumps({"secret_file": str(path), "key": public}))
    else:
        print(f"secret key {path} (keep it; mode 0600)\nevery node: --trusted-key {public}")


def _sign(bundle: Bundle, path: Path, key: Path, *, as_json: bool) -> None:
    if not path.is_dir():
        raise ConfigError(path, "", "is no folder: unpack a bundle to sign it")
    secret = _load_signer(key)
    try:
        (path / SIGNATURE_FILE).write_bytes(sign_bundle(secret, bundle.bundle_id))
    except OSError as error:
        raise ConfigError(path, "", f"cannot be signed: {error.strerror or error}") from error
    if as_json:
        print(json.dumps({"id": bundle.bundle_id.hex(), "path": str(path), "key": public_key(secret).hex()}))
    else:
        print(f"{path}: {bundle.short_id} is signed\nevery node: --trusted-key {public_key(secret).hex()}")


def _load_signer(path: Path) -> bytes:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}; rac bundle signer makes one"
        raise ConfigError(path, "", problem) from error
    except UnicodeDecodeError as error:
        raise ConfigError(path, "", "holds no key that signs bundles") from error
    if mode & OTHERS:
        raise ConfigError(path, "", "can be read by others: chmod 600")
    try:
        secret = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigError(path, "", "holds no key that signs bundles") from error
    if len(secret) != KEY_BYTES:
        raise ConfigError(path, "", "holds no key that signs bundles")
    return secret


def _show(bundle: Bundle, path: str) -> None:
    manifest, console = bundle.manifest, Console(highlight=False, soft_wrap=True)
    size = sum(entry.size_bytes for entry in manifest.files.values())
    levels = [level16 / 16 for level16 in manifest.levels16]
    console.print(f"{manifest.name} {bundle.bundle_id.hex()}")
    console.print(f"  {path}, {size / 1e6:.2f} MB, classifier {manifest.classifier} cut at {manifest.cut}")
    console.print(f"  depths {', '.join(map(str, manifest.depths))}; levels {levels[0]:g} to {levels[-1]:g}")
    console.print(f"  trained: {', '.join(f'{key} {value}' for key, value in manifest.training.items())}")
    if manifest.measured is None:
        return
    table = Table(title=f"measured on {manifest.measured.pictures} pictures ({manifest.measured.source})")
    for heading in ("depth", "level", "bpp", "agreement", "share of top-1"):
        table.add_column(heading, justify="right")
    for point in manifest.measured.points:
        share = "-" if point.share_of_top1 is None else f"{point.share_of_top1:.3f}"
        table.add_row(str(point.depth), f"{point.level16 / 16:g}", f"{point.bpp:.3f}", f"{point.agreement:.3f}", share)
    console.print(table)
