"""Whether a server can be reached, within seconds."""

import threading
import urllib.error
import urllib.request
from contextlib import suppress

PROBE_SECONDS = 3


def is_reachable(url: str) -> bool:
    """Return whether a server answers within PROBE_SECONDS. Libraries for downloads wait longer."""
    has_answered = threading.Event()

    def request() -> None:
        head = urllib.request.Request(url, method="HEAD")
        with suppress(Exception):  # no network, no name server, or a proxy that refuses
            with suppress(urllib.error.HTTPError):  # some servers reject HEAD, but have answered
                urllib.request.urlopen(head, timeout=PROBE_SECONDS).close()
            has_answered.set()

    # urlopen's timeout does not cover name resolution, so a thread waits for it.
    threading.Thread(target=request, daemon=True).start()
    return has_answered.wait(PROBE_SECONDS)
