"""ColumnMap: where the rows named by one structural column are, and in which chunks they travel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Of a hub: more edges than a thread visits in some milliseconds, and more than an eighth of all.
_HUB_ENTRIES, _HUB_SHARE = 1 << 16, 8

# A chunk of fewer rows costs more in messages than it saves in memory.
_LEAST_CHUNK = 2048


@dataclass(frozen=True)
class Block:
    """Entries of a column whose targets one peer owns, one chunk of them at a time.

    Attributes:
        peer: owner of the targets.
        chunk: number of the chunk among the rows needed from `peer` (0 for the part's own rows).
        rows: int64 [K], positions in the column.
        index: int64 [K], position of each target among the chunk's rows, or among the owned rows for the own block.
    """

    peer: int
    chunk: int
    rows: Tensor
    index: Tensor


@dataclass(frozen=True, eq=False)
class ColumnMap:
    """How part p reads and folds through one column; equal to itself alone, so that it may be a key.

    Attributes:
        remote: whether any part names rows of another part through this column (agreed by all parts).
        index: int64 [S_p], owned position of every entry when `remote` is False, else None.
        blocks: the column's entries by owner and chunk when `remote` is True.
        needs: needs[q] = number of rows of each chunk received from q.
        serves: serves[q] = int64 owned positions of each chunk sent to q.
        round_chunks: round_chunks[r] = most chunks that any part receives from the part r before it; the same on all
            parts, so that they step through the rounds of a schedule alike.
        reads: reads[p][q] = rows of part q that part p reads; the same on all parts, so that they decide alike.
        has_hub: whether all parts name owned rows only, and one has a row (`is_hub`) that threads should share.
    """

    remote: bool
    index: Tensor | None
    blocks: tuple[Block, ...] = ()
    needs: tuple[tuple[int, ...], ...] = ()
    serves: tuple[tuple[Tensor, ...], ...] = ()
    round_chunks: tuple[int, ...] = ()
    reads: tuple[tuple[int, ...], ...] = ()
    has_hub: bool = False

    @property
    def own_index(self) -> Tensor:
        """`index`, of a column that names owned rows only."""
        if self.index is None:
            raise ValueError("the column names rows of other parts: read it block by block")
        return self.index

    @property
    def halo_rows(self) -> int:
        """Rows of other parts that this part reads through the column."""
        return sum(map(sum, self.needs))

    @property
    def most_halo_rows(self) -> int:
        """Rows of other parts that the part with the largest halo reads; the same on all parts."""
        return max(map(sum, self.reads), default=0)

    def halo_start(self, peer: int, chunk: int = 0) -> int:
        """Place of a chunk among the halo rows: those of one peer after the other, in their order."""
        return sum(map(sum, self.needs[:peer])) + sum(self.needs[peer][:chunk])


def is_hub(entries: int, of: int) -> bool:
    """Whether a row with this many of a column's entries keeps the thread that visits it longer than the others."""
    return entries > _HUB_ENTRIES and entries * _HUB_SHARE > of


def chunk_rows(own_rows: int, peer_rows: int) -> int:
    """Largest number of rows of one chunk: an eighth of the smaller of the two parts, but 2048 where that is less, and
    a quarter at most."""
    rows = min(own_rows, peer_rows)
    return max(1, min(rows // 4, max(rows // 8, _LEAST_CHUNK)))
