"""`make fuzz`: mutated frames into the decoder and mutated messages into a real cloud, as many as are asked for."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.e2e.balance import resident_bytes
from tests.e2e.conftest import start_cloud, starter
from tests.fuzz.frames import fuzz_frames
from tests.fuzz.messages import fuzz_messages

SHOWN_VIOLATIONS = 10


def main() -> int:
    """Run; returns 1 when a rule was broken."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="mutated frames into the decoder (1000000)")
    parser.add_argument("--messages", type=int, default=200_000, help="mutated messages into the cloud (200000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    is_sound = True
    if args.frames:
        begun_s = time.monotonic()
        is_sound &= _tell("frames", dict(vars(fuzz_frames(args.frames, args.seed))), begun_s)
    if args.messages:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as programs:
            start = starter(Path(folder), programs)
            cloud = start_cloud(start)
            endpoint = cloud.get("start")[0]["endpoint"]
            node = start("rac-node", "--camera", "test:?fps=10", "--cloud", endpoint, "--metrics-port", "0")
            node.wait_event("result", 10)
            begun_s = time.monotonic()
            found = dict(vars(fuzz_messages(cloud, node, args.messages, args.seed)))
            found["node"], found["cloud"] = node.end(), cloud.end()
            is_sound &= _tell("messages", found, begun_s)
    return 0 if is_sound else 1


def _tell(what: str, found: dict[str, Any], begun_s: float) -> bool:
    """Print the findings; whether no rule was broken."""
    violations = found.pop("violations")
    found |= {"seconds": round(time.monotonic() - begun_s, 1), "own_memory_bytes": resident_bytes("self")}
    print(json.dumps({what: found, "violations": len(violations)}), flush=True)
    for violation in violations[:SHOWN_VIOLATIONS]:
        print(f"{what}: {violation}", file=sys.stderr)
    return not violations


if __name__ == "__main__":
    sys.exit(main())
