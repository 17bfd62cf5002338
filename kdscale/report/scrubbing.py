"""Taking out of texts what belongs to a machine and its user: home, host, credentials."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["Scrubber"]

_SECRET = re.compile(r"TOKEN|SECRET|PASS|CREDENTIAL|API_?KEY|ACCESS_?KEY|AUTH", re.IGNORECASE)
_SHORTEST_SECRET = 6
"""Characters; a flag such as `1` under such a name is no secret, and stands everywhere."""
_IN_URL = re.compile(r"(?<=://)[^/\s\"']*@")
_SHORTEST_HOST = 2


class Scrubber:
    """Replaces what should not leave a machine.

    Args:
        places: what stands for each folder; of folders within each other the inner one counts.
        hosts: names of machines, besides this one.
    """

    def __init__(self, places: Mapping[Path, str], hosts: Iterable[str] = ()) -> None:
        folders = {str(place): word for place, word in places.items()} | {str(Path.home()): "~"}
        folders.pop("/", None)
        self._folders = [
            (re.compile(rf"(?<![\w.~-]){re.escape(place)}(?![\w-])"), word)
            for place, word in sorted(folders.items(), key=lambda pair: -len(pair[0]))
        ]
        secrets = {v for n, v in os.environ.items() if _SECRET.search(n) and len(v) >= _SHORTEST_SECRET}
        self._secrets = sorted((s for s in secrets if not s.startswith("/")), key=len, reverse=True)
        names = {name for name in (socket.gethostname(), *hosts) if len(name) >= _SHORTEST_HOST} - {"localhost"}
        self._hosts = [re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-])") for name in sorted(names, key=len)[::-1]]
        user = re.escape(getpass.getuser())
        self._user = re.compile(rf"(?<=/){user}(?=/)|(?<![\w.-]){user}(?=@)")

    def config(self, text: str) -> str:
        """A text in which names mean something: folders and credentials are taken out, nothing else."""
        for secret in self._secrets:
            text = text.replace(secret, "REMOVED")
        for place, word in self._folders:
            text = place.sub(word, text)
        return _IN_URL.sub("", text)

    def text(self, text: str) -> str:
        """A text that is only read: hosts and the user go too."""
        text = self.config(text)
        for host in self._hosts:
            text = host.sub("HOST", text)
        return self._user.sub("USER", text)
