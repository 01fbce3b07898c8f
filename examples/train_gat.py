"""Trains a graph attention network, full-batch and exactly, over the partitions of a graph.

torchrun --standalone --nproc-per-node 4 examples/train_gat.py     one process a partition
python examples/train_gat.py --parts 4                             one process steps through four partitions

The model is in models.py, the loop in training.py; --help lists the options.
"""

from training import main

if __name__ == "__main__":
    main(model="gat")
