"""Hand-written C++ loops: what the machine can do, independent of what sarc generates."""
