"""Simulated venues: real WebSocket servers on loopback, fed by a seeded market or a recording.

They speak the venues' documented protocols, commit faults on request, and keep a ledger of what
they really sent, so that a gateway can be judged against the truth. `venues.py` is the entry:
`SimSpec` describes, `SimVenues` runs, `run_sim` is the command. One file per venue.
"""
