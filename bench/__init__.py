"""Benchmarks: this daemon, C xenstored and oxenstored side by side, in the same run, on the same cores.

For: `make bench` (`python -m bench --help` for its options).
Guarantees: every figure of one table comes from one run, its rounds interleaved over the daemons; what could not be
measured is named in the table with the reason.
Does not know: how any daemon works; it sees sockets, process ids and /proc.

Reading order: `rows` and `scenarios` (what is measured), `load.c` (how; the other `*.c` are its parts), `subject` (on what),
`run` (in what order), `report` (how it is judged), `table` and `plots` (how it is shown).
Beside that: `counting` (work counted, not timed), `micro` (parts of the daemon alone), `restart` (what a restart costs).
"""
