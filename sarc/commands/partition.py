"""`sarc partition`: how good the parts are that each method makes of a graph."""

from __future__ import annotations

import time
import warnings

from sarc.commands.make_inputs import load_graph
from sarc.commands.output import as_records, write_json, write_table
from sarc.partition import partition, quality
from sarc.partition.methods import METHODS

_HEAD = (
    "method", "edges cut", "of all %", "halo rows", "replication", "node balance", "edge balance", "largest part N_p",
    "largest part E_p", "seconds",
)  # fmt: skip


def compare_methods(
    data: str, nodes: int, parts: int, method: str | None, seed: int, matrix: bool, timed: bool, as_json: bool
) -> None:
    """Cut the graph by every method (or one) and print what each costs.

    Args:
        matrix: also print H_pq, the rows that part p needs from part q.
        timed: add the seconds that cutting took (they differ from run to run).
    """
    graph = load_graph(data, nodes)
    rows, documents = [], []
    head = _HEAD if timed else _HEAD[:-1]
    matrices = []
    for name in [m for m in METHODS if m != "given"] if method is None else [method]:
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = partition(graph.edge_index, num_nodes=graph.num_nodes, num_parts=parts, method=name, seed=seed)
        seconds = time.perf_counter() - started
        found = quality(made)
        row = (
            made.method, found.edge_cut, round(100 * found.cut_fraction, 1), found.communication_volume,
            found.replication_factor, found.node_balance, found.edge_balance,
            max(p.node_ids.numel() for p in made.parts.values()), max(p.edge_ids.numel() for p in made.parts.values()),
            *([seconds] if timed else []),
        )  # fmt: skip
        rows.append(row)
        matrices.append((made.method, found.halo_rows))
        documents.append({**as_records(head, [row])[0], "halo_rows_matrix": [list(r) for r in found.halo_rows]})
    title = f"{graph.name}: {graph.num_nodes} nodes, {graph.num_edges} edges in {parts} parts"
    if as_json:
        write_json({"graph": graph.name, "nodes": graph.num_nodes, "edges": graph.num_edges, "methods": documents})
        return
    note = "halo rows: sources of other parts, summed over parts: one exchange sends each once"
    write_table(title, head, rows, note)
    if matrix:
        for name, halo in matrices:
            columns = ("part", *(f"from {q}" for q in range(parts)))
            write_table(
                f"{name}: rows that a part needs from each other", columns, [(p, *r) for p, r in enumerate(halo)]
            )
