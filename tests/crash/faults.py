"""What the venue does wrong meanwhile: one script a run. Times are the venue's.

Nothing here lasts longer than the recovery that K4 promises; chances are of the opportunities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def _request(fault: str, chance: float = 0.15, op: str = "order.*", **more: Any) -> Json:
    return {"fault": fault, "probability": chance, "target": {"op": op}, **more}


def _event(fault: str, chance: float, **more: Any) -> Json:
    return {"fault": fault, "probability": chance, **more}


SCRIPTS: Mapping[str, tuple[Json, ...]] = {
    "none": (),
    "latency": (
        _request("latency", 0.5, ms=600.0, distribution="exponential", where="before"),
        _request("latency", 0.5, ms=600.0, distribution="exponential", where="after"),
    ),
    "drop before": (_request("drop_request", 0.1),),
    "drop after": (_request("drop_reply", 0.1),),
    "503 unknown, executed": (_request("unavailable", what="unknown", executed=True),),
    "503 unknown, not executed": (_request("unavailable", what="unknown"),),
    "503 failed": (_request("unavailable", what="service"),),
    "-1007, executed": (_request("timeout", 0.1, executed=True),),
    "-1007, not executed": (_request("timeout", 0.1),),
    "cut before": (_request("disconnect", 0.08, when="before"),),
    "cut after": (_request("disconnect", 0.08, when="after"),),
    "queries fail": (
        _request("drop_request", 0.3, op="order.status"),
        _request("unavailable", 0.3, op="openOrders.status", what="service"),
        _request("disconnect", 0.05),
    ),
    "late events": (
        _event("event_delay", 0.5, ms=800.0, ordered=True),
        _event("event_delay", 0.3, ms=1500.0, ordered=False),
    ),
    "events in disorder": (
        _event("event_reorder", 0.3, span=2, ms=1000.0),
        _event("event_duplicate", 0.3, copies=2),
    ),
    "connections end": (
        {"fault": "reset", "every": 12.0},
        {"fault": "end_of_life", "every": 17.0},
    ),
    "listen keys expire": (
        {"fault": "expire_listen_key", "every": 11.0},
        {"fault": "terminate_stream", "every": 9.0, "target": {"product": "spot"}},
    ),
    "listen keys expire in silence": (
        {"fault": "expire_listen_key", "every": 13.0, "announced": False},
    ),
    "shutdown notices": ({"fault": "shutdown", "every": 10.0, "grace": 1.0},),
}
