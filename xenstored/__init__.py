"""The bootstrapper: command line, files, sockets, and the wiring of State to Logic.  The only place that knows both."""

from xenstored import lean as lean
