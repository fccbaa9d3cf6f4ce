"""The simulated Binance that trades: REST, WebSocket APIs and user data of spot, USD-M and COIN-M.

`venue.py` is the entry: `TradingSpec` describes, `SimTrading` runs. A request passes `rest.py` or
`wsapi.py` (sockets), `faults.py` (what goes wrong), `gate.py` (limits, keys, times, signatures),
then `spot.py` or `futures.py` (what the products mean), which act on `exchange.py` (orders against
`matching.py`) and tell `streams.py` (user data). `ledger.py` remembers everything.
"""
