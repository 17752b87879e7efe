"""The cloud's graphs, made once for each bundle and classifier and kept in the cache folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.bundle import Bundle
from pipeline.codec.classifier import CLASSIFIERS, Classifier, classifier_sha256, load_classifier, weights_for
from pipeline.codec.graphs import export_cloud_graph, export_reference_graph, read_decoder
from pipeline.codec.paper_bundle import export_paper_cloud_graph, read_paper_cloud
from pipeline.errors import BundleError, BundleFormatError, BundleMismatchError
from pipeline.inference import (
    CLOUD_GRAPH,
    FACTS_FILE,
    REFERENCE_GRAPH,
    VECTORS_FILE,
    file_sha256,
    find_graphs,
    graphs_folder,
)


def prepare_graphs(bundle: Bundle, root: Path, weights: Path | None = None) -> Path:
    """Folder with the bundle's graphs, made now if the cache has none that is whole.

    Args:
        root: the cache folder.
        weights: the classifier's state dict instead of the installed package's; not asked where it is another
            classifier's.

    Raises:
        BundleFormatError: it is cut where its classifier cannot be.
        BundleMismatchError: the classifier's tensors are not the ones that the bundle was trained with.
        BundleError: the cache folder cannot be written.
    """
    found = find_graphs(root, bundle.bundle_id, weights)
    if found is not None:
        return found
    folder = graphs_folder(root, bundle.bundle_id, weights)
    name, cut = bundle.manifest.classifier, bundle.manifest.cut
    own = weights_for(name, weights)
    classifier = load_classifier(name, own)
    if cut not in CLASSIFIERS[name].cuts:
        raise BundleFormatError(f"bundle {bundle.manifest.name}: {name} has no cut {cut}")
    if classifier_sha256(name, own) != bundle.manifest.classifier_sha256:
        raise BundleMismatchError(
            f"bundle {bundle.manifest.name} was trained with other {name} weights than {own or 'the installed ones'}"
        )
    is_paper = bundle.manifest.family == "paper"
    cloud_graph = export_paper_cloud_graph(bundle, classifier) if is_paper else export_cloud_graph(bundle, classifier)
    graphs = {CLOUD_GRAPH: cloud_graph, REFERENCE_GRAPH: export_reference_graph(classifier)}
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="making-", dir=root))
        try:
            _write(temporary, bundle, classifier, graphs)
            if find_graphs(root, bundle.bundle_id, weights) is None:  # another process may have been faster
                if folder.exists():
                    shutil.rmtree(folder)
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if find_graphs(root, bundle.bundle_id, weights) is None:
            raise BundleError(
                f"{root}: the graphs cannot be kept there ({error.strerror}): name another folder with RAC_CACHE"
            ) from error
    return folder


def _write(folder: Path, bundle: Bundle, classifier: Classifier, graphs: Mapping[str, bytes]) -> None:
    """Graphs, vectors and, last, the facts with the hashes of both."""
    for name, content in graphs.items():
        (folder / name).write_bytes(content)
    is_paper = bundle.manifest.family == "paper"
    _, inverse_gain, condition = read_paper_cloud(bundle, classifier) if is_paper else read_decoder(bundle)
    np.savez(folder / VECTORS_FILE, inverse_gain=inverse_gain.numpy(), condition=condition.numpy())
    facts = {
        "depths": bundle.manifest.depths,
        "levels16": bundle.manifest.levels16,
        "sha256": {name: file_sha256(folder / name) for name in (*graphs, VECTORS_FILE)},
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
