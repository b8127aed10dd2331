"""What a program asks of a test server in another process, under `/_control/`: none of it is logged, or fails.

GET and DELETE `log`: its lines as JSON; forget them. PUT `link`: the fields of a `Link`. PUT `faults`: a list of the
fields of `Fault`, in place of those that are there. PUT `url_seconds`: for how long the Hub's signed URLs are good
(null: for ever). PUT `seed`: `repo` and `folder`, whose files are committed to that dataset.
"""

from __future__ import annotations

import dataclasses
import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_link import Link

if TYPE_CHECKING:
    from hub_server import HubHandler

PREFIX = "/_control/"


def answer_control(handler: HubHandler) -> None:
    """Answer a request whose path begins with `PREFIX`."""
    site, name = handler.site, handler.path.removeprefix(PREFIX)
    wish = handler.json_of_any_kind() if handler.command == "PUT" else None
    if (handler.command, name) == ("GET", "log"):
        handler.answer(200, [dataclasses.asdict(request) for request in list(site.log)])
        return
    if (handler.command, name) == ("DELETE", "log"):
        site.reset_log()
    elif (handler.command, name) == ("PUT", "link"):
        site.link = Link(**wish)
    elif (handler.command, name) == ("PUT", "faults"):
        site.faults = []
        for fields in wish:
            site.fault(**fields)
    elif (handler.command, name) == ("PUT", "url_seconds"):
        site.url_seconds = wish
    elif (handler.command, name) == ("PUT", "seed"):
        folder = Path(wish["folder"])
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        site.seed_repo(wish["repo"], {path.relative_to(folder).as_posix(): path for path in paths})
    else:
        handler.answer(404, {"error": f"no such control: {handler.command} {name}"})
        return
    handler.answer(200, {})


def control(endpoint: str, method: str, name: str, value: Any = None) -> Any:
    """Ask a running server, and return what it answers."""
    body = json.dumps(value).encode() if method == "PUT" else None
    request = urllib.request.Request(f"{endpoint}{PREFIX}{name}", body, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())
