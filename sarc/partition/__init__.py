"""Graphs cut into parts: making, measuring, saving and loading them."""

from sarc.partition.cut import cut
from sarc.partition.files import load_shard
from sarc.partition.layout import Part, Partitions
from sarc.partition.methods import partition
from sarc.partition.order import locality_order
from sarc.partition.quality import Quality, quality
from sarc.partition.shard import Shard, ShardGraph, ranks_of_process

__all__ = [
    "Part",
    "Partitions",
    "Quality",
    "Shard",
    "ShardGraph",
    "cut",
    "load_shard",
    "locality_order",
    "partition",
    "quality",
    "ranks_of_process",
]
