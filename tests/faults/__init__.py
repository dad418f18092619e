"""Faults of the machine under the daemon: system calls that do less than they were asked, a full disk, clocks that jump."""
