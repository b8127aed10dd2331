"""A relay in front of an S3 server (moto's) that fails on demand and has a log: `FaultyServer`'s faults for S3."""

from __future__ import annotations

import http.client

from hub_wire import FaultyHandler, FaultyServer

HOPS = {"connection", "transfer-encoding", "content-length", "date", "server"}


class RelayHandler(FaultyHandler):
    site: S3Relay

    def dispatch(self, path: str) -> None:
        body = b"".join(self.body)
        there = http.client.HTTPConnection("127.0.0.1", self.site.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOPS}
        there.request(self.command, self.path, body, headers)
        response = there.getresponse()
        content, length = response.read(), response.getheader("Content-Length")
        there.close()
        answered = {name: value for name, value in response.getheaders() if name.lower() not in HOPS}
        self.begin_answer(response.status, {**answered, "Content-Length": length or str(len(content))})
        self.write(content)


class S3Relay(FaultyServer):
    """What the S3 server at the port `upstream` of this machine answers."""

    handler = RelayHandler

    def __init__(self, upstream: int) -> None:
        super().__init__()
        self.upstream = upstream

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"
