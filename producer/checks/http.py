"""Asking HTTP endpoints, all at once: each answer within its limit, whatever the server does."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx

# Of an answer only so much is read: the end of a response counts, not its size.
MOST_BYTES = 10_000_000


@dataclass(frozen=True)
class Answer:
    """What one endpoint did: its address without user, password and query, seconds, and words."""

    label: str
    seconds: float
    said: str
    is_right: bool = False
    status: int | None = None
    body: bytes = b""


def ask_all(urls: list[str], limit_seconds: float) -> list[Answer]:
    """GET each of the URLs, in their order; none holds the caller up beyond the limit.

    An answer is right when its status is 2xx. Redirects are named and not followed: where they
    lead is no endpoint of the settings.
    """
    found: dict[int, Answer] = {}

    def ask_one(number: int) -> None:
        found[number] = ask(urls[number], limit_seconds)

    # Threads and not timeouts alone: a name's lookup knows no timeout.
    threads = [
        threading.Thread(target=ask_one, args=(number,), daemon=True) for number in range(len(urls))
    ]
    end = time.monotonic() + limit_seconds + 0.5
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [
        found.get(number) or _late(label_of(url), limit_seconds) for number, url in enumerate(urls)
    ]


def ask(url: str, limit_seconds: float) -> Answer:
    """GET one URL; reads the answer to its end, or to the limit."""
    started = time.monotonic()
    answer = Answer(label_of(url), 0.0, "")
    try:
        with (
            httpx.Client(
                timeout=limit_seconds,
                follow_redirects=False,
                headers={"Accept-Encoding": "identity"},
            ) as client,
            client.stream("GET", url) as response,
        ):
            body = bytearray()
            for part in response.iter_raw():
                body += part
                if time.monotonic() - started > limit_seconds:
                    return replace(_late(answer.label, limit_seconds), status=response.status_code)
                if len(body) > MOST_BYTES:
                    break
            answer = replace(_judged(answer, response), body=bytes(body))
    except httpx.TimeoutException:
        return _late(answer.label, limit_seconds)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as failure:
        answer = replace(answer, said=_why(failure))
    return replace(answer, seconds=round(time.monotonic() - started, 4))


def label_of(url: str) -> str:
    """A URL as it may be shown: without user, password, query and fragment."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _judged(answer: Answer, response: httpx.Response) -> Answer:
    status = response.status_code
    said = f"{status} {response.reason_phrase}".strip()
    if response.is_redirect:
        target = label_of(str(response.url.join(response.headers["location"])))
        said = f"{said}: redirects to {target}"
    return replace(answer, said=said, status=status, is_right=response.is_success)


def _late(label: str, limit_seconds: float) -> Answer:
    return Answer(label, limit_seconds, f"no answer within {limit_seconds:g} s")


def _why(failure: Exception) -> str:
    text = str(failure)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.partition("CERTIFICATE_VERIFY_FAILED] ")[2].partition(" (_ssl")[0]
        return f"bad certificate: {reason or 'it cannot be verified'}"
    if isinstance(failure, httpx.ConnectError):
        return "cannot be reached"
    return f"broken answer ({type(failure).__name__})"
