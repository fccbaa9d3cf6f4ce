"""Crash: a trading gateway that dies at every step of an order's way, and a venue that misbehaves.

`python -m tests.crash` from the root of the repository; `hatch run crash` is the same.
"""
