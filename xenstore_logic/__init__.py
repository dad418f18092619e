"""XenStore-Logic: everything a guest can reach.  It may die at any instruction; a fork of State takes its place.

- `core`      one request in, its reply, effects and events out; pure, for daemons, fuzzers and model checkers alike
- `requests`, `control`   what each operation answers
- `embedded`  the core without any process, socket or clock
- `channels`, `loop`      bytes in and out of the recovery box, and the loop that does it
- `process`   the process around the loop
"""
