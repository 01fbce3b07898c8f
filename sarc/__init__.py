"""sarc: a graph compiler that trains GNNs full-batch, and exactly, over graph partitions."""

from sarc import data, errors
from sarc.compiler import compile
from sarc.partition import Part, Partitions, Shard, load_shard, locality_order, partition
from sarc.runtime.distributed import all_reduce_gradients, init_distributed
from sarc.runtime.loss import accuracy, binary_cross_entropy, cross_entropy, mean, mse_loss
from sarc.runtime.module import CompiledModule
from sarc.runtime.profile import profile

__version__ = "0.1.0"
__all__ = [
    "CompiledModule",
    "Part",
    "Partitions",
    "Shard",
    "accuracy",
    "all_reduce_gradients",
    "binary_cross_entropy",
    "compile",
    "cross_entropy",
    "data",
    "errors",
    "init_distributed",
    "load_shard",
    "locality_order",
    "mean",
    "mse_loss",
    "partition",
    "profile",
]
