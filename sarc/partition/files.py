"""Save a partition with its tensors, one file a part, and load a process's share of it.

A directory holds `part-00000.safetensors` ... and `manifest.json`. A part file holds node_ids, edge_ids, edge_index,
halo_ids (all peers, in order; `sizes` in the manifest cuts it) and the part's rows of each tensor as `node/NAME` and
`edge/NAME`. The manifest names sizes and SHA-256 of every file, and carries a SHA-256 of itself: a flipped bit anywhere
is found at load. All is written under temporary names and renamed, the manifest last.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sarc.errors import PartitionError
from sarc.partition.layout import Part, Partitions
from sarc.partition.shard import Shard, check_rows, checked_ranks, ranks_of_process, rows_of

FORMAT = "sarc-partition"
VERSION = 1
MANIFEST = "manifest.json"


def save(
    partitions: Partitions, directory: str | os.PathLike[str], node: Mapping[str, Any], edge: Mapping[str, Any]
) -> None:
    """Writes `partitions` and its rows of whole-graph tensors; see `Partitions.save`."""
    if not partitions.is_whole:
        held = ", ".join(map(str, sorted(partitions.parts)))
        raise PartitionError(
            f"save needs all {partitions.num_parts} parts, this process holds {held}; save before sharding"
        )
    check_rows(node, edge, partitions)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # Without its manifest a half-replaced partition cannot be taken for a whole one.
    (folder / MANIFEST).unlink(missing_ok=True)
    files = [_write_part(folder, partitions, partitions.parts[p], node, edge) for p in range(partitions.num_parts)]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": partitions.fingerprint,
        "num_nodes": partitions.num_nodes,
        "num_edges": partitions.num_edges,
        "num_parts": partitions.num_parts,
        "method": partitions.method,
        "graph_kind": partitions.graph_kind,
        "node_type": partitions.node_type,
        "relation": partitions.relation,
        "node": {name: _describe(tensor) for name, tensor in node.items()},
        "edge": {name: _describe(tensor) for name, tensor in edge.items()},
        "files": files,
        "sizes": {
            "nodes": [partitions.parts[p].node_ids.numel() for p in range(partitions.num_parts)],
            "edges": [partitions.parts[p].edge_ids.numel() for p in range(partitions.num_parts)],
            "halo": [list(partitions.parts[p].halo_sizes) for p in range(partitions.num_parts)],
        },
    }
    text = json.dumps({**manifest, "sha256": _digest_of_manifest(manifest)}, indent=1)
    temporary = folder / f".{MANIFEST}.{os.getpid()}.tmp"
    temporary.write_text(text + "\n")
    _rename(temporary, folder / MANIFEST)


def load_shard(
    directory: str | os.PathLike[str], ranks: int | Sequence[int] | None = None, *, fingerprint: str | None = None
) -> Shard:
    """Loads the parts of this process, reading no other part's file.

    Args:
        directory: written by `Partitions.save`.
        ranks: parts to load. None: with W = WORLD_SIZE processes and r = RANK of the environment, parts r*P//W up to
            (r+1)*P//W; every part when neither is set.
        fingerprint: of the partition that is expected (`partitions.fingerprint`), to refuse another one.

    Raises:
        PartitionError: a file is missing, truncated or altered, of another format version or partition; or the parts do
            not fit the number of processes.
    """
    folder = Path(directory)
    manifest = _read_manifest(folder, fingerprint)
    num_parts = manifest["num_parts"]
    held = _ranks_from_environment(num_parts) if ranks is None else checked_ranks(ranks, num_parts)
    parts, node_rows, edge_rows = {}, [], []
    for rank in held:
        tensors = _read_part(folder, manifest, rank)
        halo_ids = tensors["halo_ids"].split(manifest["sizes"]["halo"][rank])
        parts[rank] = Part(rank, tensors["node_ids"], tensors["edge_ids"], tensors["edge_index"], halo_ids)
        node_rows.append({name: tensors[f"node/{name}"] for name in manifest["node"]})
        edge_rows.append({name: tensors[f"edge/{name}"] for name in manifest["edge"]})
    assignment, edge_index = _whole(manifest, parts) if len(parts) == num_parts else (None, None)
    partitions = Partitions(
        parts=parts,
        assignment=assignment,
        edge_index=edge_index,
        **{
            key: manifest[key] for key in ("num_nodes", "num_edges", "num_parts", "method", "fingerprint", "graph_kind")
        },
        **{key: manifest[key] for key in ("node_type", "relation")},
    )
    return Shard(
        partitions=partitions,
        node_ids=torch.cat([part.node_ids for part in parts.values()]),
        edge_ids=torch.cat([part.edge_ids for part in parts.values()]),
        node={name: torch.cat([rows[name] for rows in node_rows]) for name in manifest["node"]},
        edge={name: torch.cat([rows[name] for rows in edge_rows]) for name in manifest["edge"]},
    )


def _write_part(
    folder: Path, partitions: Partitions, part: Part, node: Mapping[str, Any], edge: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes one part's file; gives its name, bytes and SHA-256."""
    tensors = {
        "node_ids": part.node_ids,
        "edge_ids": part.edge_ids,
        "edge_index": part.edge_index,
        "halo_ids": torch.cat(part.halo_ids),
        **{f"node/{name}": rows_of(tensor, part.node_ids) for name, tensor in node.items()},
        **{f"edge/{name}": rows_of(tensor, part.edge_ids) for name, tensor in edge.items()},
    }
    name = f"part-{part.rank:05d}.safetensors"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    metadata = {"format": FORMAT, "fingerprint": partitions.fingerprint, "rank": str(part.rank)}
    safetensors.torch.save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, metadata)
    entry = {"name": name, "bytes": temporary.stat().st_size, "sha256": _digest_of_file(temporary)}
    _rename(temporary, folder / name)
    return entry


def _read_manifest(folder: Path, fingerprint: str | None) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise PartitionError(
            f"{path}: expected a manifest, got no such file; save the partition there, or again when saving was "
            "interrupted"
        )
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["version"] if manifest["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError) as error:
        raise PartitionError(f"{path}: expected a {FORMAT} manifest, got damaged JSON ({error}); save again") from None
    if version != VERSION:
        raise PartitionError(
            f"{path}: expected {FORMAT} version {VERSION}, got {manifest['format']} version {manifest['version']}; "
            "save again with this version of sarc"
        )
    expected = manifest.pop("sha256", None)
    found = _digest_of_manifest(manifest)
    if found != expected:
        raise PartitionError(f"{path}: expected SHA-256 {expected}, got {found}: the manifest was altered; save again")
    if fingerprint is not None and manifest["fingerprint"] != fingerprint:
        raise PartitionError(
            f"{path}: expected the partition with fingerprint {fingerprint}, got {manifest['fingerprint']}: another "
            "graph, assignment or number of parts; load the directory saved from that partition, or save again"
        )
    return manifest


def _read_part(folder: Path, manifest: Mapping[str, Any], rank: int) -> dict[str, Tensor]:
    entry = manifest["files"][rank]
    path = folder / entry["name"]
    if not path.is_file():
        raise PartitionError(f"{path}: expected the file of part {rank}, got no such file; copy it here or save again")
    size = path.stat().st_size
    found = _digest_of_file(path)
    if size == entry["bytes"] and found == entry["sha256"]:
        # load_file maps the file; a later change to it must not reach the tensors.
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    owner = _metadata(path).get("fingerprint", manifest["fingerprint"])
    if owner != manifest["fingerprint"]:
        raise PartitionError(
            f"{path}: expected a part of partition {manifest['fingerprint']}, got one of partition {owner}; files of "
            "two partitions are mixed here: save again into an empty directory"
        )
    if size != entry["bytes"]:
        raise PartitionError(f"{path}: expected {entry['bytes']} bytes, got {size}; copy the file again or save again")
    raise PartitionError(
        f"{path}: expected SHA-256 {entry['sha256']}, got {found}: its content changed; copy the file again or save "
        "again"
    )


def _metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file that may be damaged; empty when unreadable."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError):
        return {}


def _ranks_from_environment(num_parts: int) -> tuple[int, ...]:
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and world is None:
        return tuple(range(num_parts))
    try:
        return ranks_of_process(num_parts, int(rank or ""), int(world or ""))
    except ValueError:
        raise PartitionError(
            f"expected RANK and WORLD_SIZE in the environment to be integers, got RANK={rank!r}, WORLD_SIZE={world!r}; "
            "start under torchrun, or pass ranks="
        ) from None


def _whole(manifest: Mapping[str, Any], parts: Mapping[int, Part]) -> tuple[Tensor, Tensor]:
    """assignment int64 [N] and edge_index int64 [2, E], put together from every part."""
    assignment = torch.empty(manifest["num_nodes"], dtype=torch.int64)
    edge_index = torch.empty(2, manifest["num_edges"], dtype=torch.int64)
    for rank, part in parts.items():
        assignment[part.node_ids] = rank
        edge_index[:, part.edge_ids] = part.edge_index
    return assignment, edge_index


def _describe(tensor: Any) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _digest_of_manifest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rename(temporary: Path, final: Path) -> None:
    """Puts a finished file in place: on disk first, so that a crash leaves the old file or the new one."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)
