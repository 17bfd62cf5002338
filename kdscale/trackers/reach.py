"""Whether an address answers from this machine, found out within seconds. Imports nothing heavy."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

__all__ = ["PROBE_S", "why_no_answer"]

PROBE_S = 3.0


def why_no_answer(address: str, within_s: float = PROBE_S) -> str | None:
    """Ask an http(s) address once, by the proxies that the environment names.

    Args:
        address: any answer will do, an error page too.
        within_s: also where looking up the name hangs, which no time-out of a socket ends.

    Returns:
        None when it answered, else why not.
    """
    heard: list[str | None] = []
    asking = threading.Thread(target=lambda: heard.append(_ask(address, within_s)), name="probe", daemon=True)
    asking.start()
    asking.join(within_s + 0.5)
    return heard[0] if heard else f"no answer within {within_s:g} s"


def _ask(address: str, within_s: float) -> str | None:
    try:
        with urllib.request.build_opener().open(address, timeout=within_s):
            return None
    except urllib.error.HTTPError as error:  # somebody is there
        error.close()
        return None
    except urllib.error.URLError as error:
        reason = error.reason
        return str(getattr(reason, "strerror", None) or reason).lower()
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
