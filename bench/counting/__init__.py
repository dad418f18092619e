"""What requests cost in work done, not in time: the same figure on every run, so that a regression shows in a test.

For: `tests/unit/test_counting.py`, `python -m bench.counting`.

Two kinds of work are counted for each section of a fixed workload (`workload`). *Bytecodes* and calls of functions written in
C (`bytecodes`) need nothing but Python, and are blind to what happens inside of such functions and of compiled modules.
*Instructions* of the processor (`instructions`) see everything, and need valgrind. Both depend on the Python version and on
the build, so figures are stored for each (`stored.json`), and where there are none, that is said.

Reading order: `workload`, `bytecodes`, `instructions`, `stored`.
"""
