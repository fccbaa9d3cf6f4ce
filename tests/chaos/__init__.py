"""Chaos: a gateway, a simulated venue that does everything wrong, and an account of every record.

`python -m tests.chaos` from the root of the repository; `hatch run chaos` is the same.
"""
