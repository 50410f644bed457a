"""Content-addressed stage folders with a manifest, a lease against double work, and nothing half-written."""

from alignment.artifacts.at_work import Work
from alignment.artifacts.faults import StoreUnreachable
from alignment.artifacts.lease import Lease, MadeElsewhere
from alignment.artifacts.manifest import FORMAT, FileEntry, Manifest, RowCounts, digest_of, key_of
from alignment.artifacts.store import Artifact, Store
from alignment.artifacts.work import cache_folder, sha256_of

__all__ = [
    "FORMAT", "Artifact", "FileEntry", "Lease", "MadeElsewhere", "Manifest", "RowCounts", "Store", "StoreUnreachable",
    "Work", "cache_folder", "digest_of", "key_of", "sha256_of",
]
