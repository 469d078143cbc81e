"""Who may ask: whoever has the token, by a name of this machine, and for what changes something from the page itself.

The token keeps out other users of the machine and other pages; the check of the Host header a page whose name was made
to lead here (DNS rebinding); the origin a page that sends a form here. No answer has a header that lets another origin
read it.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from email.message import Message
from urllib.parse import urlsplit

HOSTS = ("127.0.0.1", "localhost", "::1")

#: The page runs and loads nothing but its own files, and nothing makes HTML of text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Gate:
    """The token of one server."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def inside(self, path: str) -> str | None:
        """What follows the token in the path of a request; None where it is not there."""
        token, slash, rest = path.removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(errors="replace"), self.token.encode())
        return rest if known and slash else None

    def refusal(self, method: str, headers: Message) -> str | None:
        """Why a request is refused, whatever it asks for; None where it is not."""
        host = headers.get("Host") or ""
        if _host(host) not in HOSTS:
            return "this server answers to 127.0.0.1 and localhost only"
        if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return "another page may not ask this server"
        if method == "GET":
            return None
        if headers.get("Origin") != f"http://{host}":
            return "only the page of this server may ask for that"
        return None if headers.get_content_type() == "application/json" else "a request is JSON"


def _host(header: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
