"""Labelled graphs: generated, read from npz files, and taken from PyG, DGL, scipy and OGB."""

from sarc.data.generate import labelled_graph
from sarc.data.graph_data import GraphData
from sarc.data.load import from_dgl, from_ogb, from_pyg, from_scipy, load
from sarc.data.npz import read_npz

__all__ = ["GraphData", "from_dgl", "from_ogb", "from_pyg", "from_scipy", "labelled_graph", "load", "read_npz"]
