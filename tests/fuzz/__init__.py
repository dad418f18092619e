"""Fuzzing what a client, a guest, a broken Logic or an operator can put in front of the daemon: see `targets`."""
