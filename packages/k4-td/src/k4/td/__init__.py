"""Trading: signed order entry, user-data streams, an order state that is never guessed.

`TdModule` trades in this process; `TdClient` and `AsyncTdClient` speak to a running gateway. The
values and errors that they share are in `k4.core.trading`.
"""

from k4.td.client import AsyncTdClient, TdClient
from k4.td.timing import Timing
from k4.td.trading import TdModule

__all__ = ["AsyncTdClient", "TdClient", "TdModule", "Timing"]
