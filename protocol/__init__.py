"""The XenStore wire protocol, sans-IO: bytes to meaning and back.

Nothing in this package opens a socket, reads a clock or keeps state beyond what a decoder needs, so daemons, clients,
test-suites and fuzzers share it.  (`protocol.client`, a package of its own below this one, is the part that does I/O.)

`ops` numbers and names operations, `errors` names failures, `wire` packs and frames messages, `payload` takes payloads
apart, `paths` says what a path is, `permissions` what a permission entry is.
"""
