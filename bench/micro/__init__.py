"""Micro-benchmarks: each hot function of the daemon alone, by pyperf.

For: `make bench-micro`, `bench/BUDGET.md`.

Chosen over pytest-benchmark because pyperf measures each function in several fresh processes, calibrates by itself, and can
be pinned to a core. `parts` says what is measured, `__main__` measures; `courses` measures what a
turn is made of, `budget` adds it up.
"""
