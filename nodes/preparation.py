"""Making the cloud's graphs in a process of its own, so that torch's memory and threads end with it."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection, wait
from pathlib import Path

from nodes.lifecycle import StopRequest
from nodes.spawning import start_shielded
from pipeline.bundle import Bundle
from pipeline.errors import BundleError, BundleFormatError, PipelineError
from pipeline.inference import cache_root, find_graphs


def prepare_in_process(name: str, bundle: Bundle, weights: Path | None, stop: StopRequest) -> Path | None:
    """Folder of the bundle's graphs: from the cache when it is whole, else made now.

    Returns:
        None when a stop was asked for meanwhile.
    Raises:
        BundleError: the graphs cannot be made.
    """
    found = find_graphs(cache_root(), bundle.bundle_id, weights)
    if found is not None:
        return found
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_prepare, args=(theirs, name, weights), name="rac-preparation", daemon=True)
    start_shielded(process)
    theirs.close()
    try:
        ready = wait([ours, stop.fileno()])
        if ours not in ready:
            return None
        answer = ours.recv()
    except EOFError as error:
        process.join()
        raise BundleFormatError(
            f"making the graphs of bundle {name} ended with exit code {process.exitcode}"
        ) from error
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, PipelineError):
        raise answer
    return Path(answer)


def _prepare(answer: Connection, name: str, weights: Path | None) -> None:
    """Target of the process: answers with the folder or the error."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from pipeline.bundle import load_bundle
    from pipeline.codec.cache import prepare_graphs

    try:
        answer.send(str(prepare_graphs(load_bundle(name), cache_root(), weights)))
    except BundleError as error:
        answer.send(type(error)(str(error)))
    except ModuleNotFoundError as error:
        answer.send(BundleFormatError(f"{error.name} is not installed: pip install 'edge-cloud-rac[cloud]'"))
