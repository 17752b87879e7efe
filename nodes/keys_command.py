"""`rac keys`: make the pairs with which nodes and cloud know one another, or show a public key."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nodes.key_files import SECRET_SUFFIX, load_secret, public_of, write_pair
from nodes.lifecycle import EXIT_OK
from pipeline.authorisation import NamedKey, parse_public
from pipeline.errors import ConfigError
from pipeline.wire_fields import is_name

CLOUD_NAME = "cloud"
FOLDERS = {"server": Path("keys"), "node": Path("keys/nodes")}


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: action (server, node or public), name, out, replace, json.
    """
    if args.action == "public":
        _show(args)
    else:
        _make(args)
    return EXIT_OK


def _make(args: argparse.Namespace) -> None:
    name = args.name or (CLOUD_NAME if args.action == "server" else None)
    if name is None:
        raise ConfigError("command line", "name", "give the node's name, as in: rac keys node door")
    if not is_name(name):
        raise ConfigError("command line", "name", "must be 1 to 64 letters, digits, dots, dashes and underscores")
    folder = Path(args.out) if args.out else FOLDERS[args.action]
    secret, public, key = write_pair(folder, name, may_replace=args.replace)
    if args.json:
        print(json.dumps({"name": name, "key": key.key, "secret_file": str(secret), "public_file": str(public)}))
        return
    print(f"secret key {secret} (keep it; mode 0600)\npublic key {public}: {key.name} {key.key}")
    if args.action == "server":
        print(f"the cloud:  rac-cloud --key {secret} --allowed FOLDER_OR_FILE\nevery node: --cloud-key {public}")
    else:
        print(f"the node:   rac-node --key {secret} --cloud-key CLOUD.pub\nthe cloud:  --allowed {folder}")


def _show(args: argparse.Namespace) -> None:
    if args.name is None:
        raise ConfigError("command line", "name", "name a key file, as in: rac keys public keys/cloud.key")
    for entry in _public_keys(Path(args.name)):
        print(json.dumps({"name": entry.name, "key": entry.key}) if args.json else f"{entry.name} {entry.key}")


def _public_keys(path: Path) -> list[NamedKey]:
    if path.suffix == SECRET_SUFFIX:
        return [public_of(load_secret(path))]
    try:
        return parse_public(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(path, "", str(error)) from error
