"""Benchmarks: contestants side by side in one process, each checked before it is timed (see README.md)."""
