"""A mirror of the Hub on loopback, as people set up behind `HF_ENDPOINT`: a proxy in front of a `HubServer`.

It hands on each request, and gives the answer with its own address in place of the Hub's. `traits` are what sound
mirrors do (the client gets along with all of them), `twist(behaviour, path)` makes the answers wrong to requests for
paths that match. A portal that answers everything itself is a twist of everything.
"""

from __future__ import annotations

import gzip
import http.client
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from hub_server import HubServer
from hub_wire import FaultyHandler, FaultyServer

Trait = Literal["no etag", "308", "gzip"]
Behaviour = Literal["gzip", "404", "html", "login", "empty", "shape", "405"]
PAGE = b"<!doctype html><html><title>Welcome</title><body>Please sign in to the network.</body></html>\n"
HOPS = {"connection", "transfer-encoding", "content-length", "date", "server", "x-request-id"}


@dataclass
class Twist:
    """What is wrong with the answers to requests that match; `done` counts them.

    gzip   compressed, whatever the client accepts            html   a page with 200
    404    the server's own page, without the Hub's code      login  a redirect to such a page
    405    a page: this server only reads                     empty  200 and no body
    shape  JSON, and not the Hub's
    """

    behaviour: Behaviour
    path: str = ""
    done: int = 0


class MirrorHandler(FaultyHandler):
    site: HubMirror

    def dispatch(self, path: str) -> None:
        body = b"".join(self.body)
        if path == "/login":
            return self.answer(200, PAGE)
        if not path.startswith(self.site.prefix + "/"):
            return self.answer(404, PAGE)
        if "308" in self.site.traits and "/resolve/" in path and not path.startswith(f"{self.site.prefix}/moved/"):
            moved = self.site.prefix + "/moved" + self.path.removeprefix(self.site.prefix)
            return self.answer(308, b"", {"Location": moved})
        twist = self.site.twist_of(self.entry.target)
        if twist in ("html", "404", "405"):
            return self.answer({"html": 200}.get(twist) or int(twist), PAGE)
        if twist == "login":
            return self.answer(302, b"", {"Location": f"{self.site.host}/login"})
        if twist == "empty":
            return self.answer(200, b"", {"Content-Type": "application/json"})
        if twist == "shape":
            return self.answer(200, {"message": "welcome"})
        return self.hand_on(body, compressed=twist == "gzip")

    def hand_on(self, body: bytes, *, compressed: bool) -> None:
        target = self.path.removeprefix(self.site.prefix)
        target = target.removeprefix("/moved") if target.startswith("/moved/") else target
        there = http.client.HTTPConnection("127.0.0.1", self.site.hub.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOPS}
        there.request(self.command, target, body, {**headers, "Host": f"127.0.0.1:{self.site.hub.port}"})
        response = there.getresponse()
        content = response.read()
        answered = {name: value for name, value in response.getheaders() if name.lower() not in HOPS}
        length = response.getheader("Content-Length")
        there.close()
        answered = {name: value.replace(self.site.hub.endpoint, self.site.endpoint) for name, value in answered.items()}
        if "json" in answered.get("Content-Type", ""):
            content = content.replace(self.site.hub.endpoint.encode(), self.site.endpoint.encode())
            length = str(len(content))
        if "no etag" in self.site.traits:
            answered = {name: value for name, value in answered.items() if name.lower() != "etag"}
        accepted = "gzip" in self.site.traits and "gzip" in self.headers.get("Accept-Encoding", "")
        if (compressed or accepted) and content and response.status == 200:
            content = gzip.compress(content)
            answered["Content-Encoding"], length = "gzip", str(len(content))
        self.begin_answer(response.status, {**answered, "Content-Length": length or "0"})
        self.write(content)


class HubMirror(FaultyServer):
    """`hub`, under `prefix` of this server's address."""

    handler = MirrorHandler

    def __init__(self, hub: HubServer, *, prefix: str = "/hub", traits: tuple[Trait, ...] = ()) -> None:
        super().__init__()
        self.hub, self.prefix, self.traits = hub, prefix, traits
        self.twists: list[Twist] = []

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        return self.host + self.prefix

    def twist(self, behaviour: Behaviour, path: str = "") -> Twist:
        self.twists.append(Twist(behaviour, path))
        return self.twists[-1]

    def twist_of(self, target: str) -> Behaviour | None:
        """What is wrong with the answer to requests for that path; the first twist that matches."""
        target = urlsplit(target).path
        for twist in self.twists:
            if re.search(twist.path, target):
                with self.lock:
                    twist.done += 1
                return twist.behaviour
        return None
