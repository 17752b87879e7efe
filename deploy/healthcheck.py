"""Exit code 0 while /healthz of the program beside it says that its main loop turns, else 1 and why.

    python healthcheck.py PORT

For health checks of containers; standard library only. The token, if any, is taken from where the program takes it:
RAC_METRICS__TOKEN_FILE or RAC_METRICS__TOKEN.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_S = 4.0


def main() -> int:
    """Ask; print what is wrong."""
    port = os.environ.get("RAC_METRICS__PORT") or sys.argv[1]
    token = os.environ.get("RAC_METRICS__TOKEN")
    try:
        if file := os.environ.get("RAC_METRICS__TOKEN_FILE"):
            token = Path(file).read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/healthz", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return 0
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read(1000).decode(errors='replace').strip()}")
    except OSError as error:
        print(error)
    return 1


if __name__ == "__main__":
    sys.exit(main())
