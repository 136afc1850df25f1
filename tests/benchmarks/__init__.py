"""Benchmarks: `python -m tests.benchmarks.NAME` prints a table, with --json one JSON object as its last line."""
