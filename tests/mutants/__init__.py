"""Deliberately broken daemons, each of which the tests must catch: who tests the tests.  See `mutations` for the list."""
