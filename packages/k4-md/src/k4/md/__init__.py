"""Market data from exchange WebSockets: codecs, line arbitration, publication."""
