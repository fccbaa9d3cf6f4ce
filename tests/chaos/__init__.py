"""Chaos: a gateway, a simulated venue that does everything wrong, and an account of every record.

`hatch run chaos`, or `python -m chaos` in the folder `tests`.
"""
