"""Contexts over HTTP as tests make them and wait for them."""

from __future__ import annotations

import time
from typing import Any

import httpx2


def create(http: httpx2.Client, **body: Any) -> dict[str, Any]:
    reply = http.post("/v1/contexts", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def completed(http: httpx2.Client, context_id: str) -> dict[str, Any]:
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        one = dict(http.get(f"/v1/contexts/{context_id}").json())
        if one["status"] not in ("queued", "in_progress"):
            return one
        time.sleep(0.02)
    raise AssertionError("it is still being read")
