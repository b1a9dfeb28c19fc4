"""Who may open the operator's page.

Three kinds of stranger are kept out: another machine (the page listens on loopback, elsewhere only
with a password or TLS), another web site in the operator's own browser (the Host header must name
this machine, so that no foreign name can be pointed here, and the Origin must be the page's own),
and another user or program of this machine (a token that is new at every start, and printed).
"""

from __future__ import annotations

import hmac
import secrets
import socket
import stat
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.core.untrusted import read_text, reading

SHORTEST_PASSWORD = 12  # characters; guesses are slowed down, not counted
LONGEST_SECRET = 1024  # characters, of a password or of what is offered as one
_LOCAL = "localhost"


@dataclass(frozen=True)
class Access:
    """The rules of one start.

    Attributes:
        address: IP address that the page listens on.
        password: empty where the token alone opens the page.
        certificate, key: PEM files of TLS; None without it.
        token: the secret of this start.
    """

    address: str = "127.0.0.1"
    password: str = field(default="", repr=False)
    certificate: Path | None = None
    key: Path | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def __post_init__(self) -> None:
        try:
            ip_address(self.address)
        except ValueError:
            raise ConfigError(
                f"panel_address '{self.address}' must be an IP address of this machine, such as "
                "127.0.0.1 or 0.0.0.0 for all of them"
            ) from None
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("panel_certificate and panel_key go together: give both or none")
        for file in (self.certificate, self.key):
            if file is not None and not file.is_file():
                raise ConfigError(f"{file}: no such file; give a certificate and its key as PEM")
        if not self.is_loopback and not self.password and self.certificate is None:
            raise ConfigError(
                f"panel_address {self.address} is open to the network: give panel_password_file or "
                "panel_certificate and panel_key, or leave panel_address out and use an ssh tunnel"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the page."""
        return ip_address(self.address).is_loopback

    @property
    def scheme(self) -> str:
        """Either http or https."""
        return "http" if self.certificate is None else "https"

    def url(self, port: int) -> str:
        """Return the address to open; what follows # never leaves the browser."""
        host = _LOCAL if ip_address(self.address).is_unspecified else self.address
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{host}:{port}/#token={self.token}"

    def admits_host(self, host: str) -> bool:
        """Return whether a Host header names this machine, and not a site that was pointed here."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # brackets that do not match
            return False
        try:
            address = ip_address(name)
        except ValueError:
            ours = {_LOCAL} if self.is_loopback else {_LOCAL, socket.gethostname().lower()}
            return name in ours
        return address.is_loopback or not self.is_loopback

    def admits_origin(self, origin: str | None, host: str) -> bool:
        """Return whether an Origin header is the page's own; a program must send one, too."""
        return origin is not None and origin == f"{self.scheme}://{host}"

    def admits_secret(self, offered: object) -> bool:
        """Return whether this is the token or the password; takes the same time for any."""
        if not isinstance(offered, str) or len(offered) > LONGEST_SECRET:
            return False
        known = [self.token, self.password] if self.password else [self.token]
        given = offered.encode(errors="surrogatepass")
        found = [hmac.compare_digest(given, secret.encode()) for secret in known]
        return any(found)


def read_password(file: Path) -> str:
    """Return the password that a file holds on its first line.

    Raises:
        ConfigError: it cannot be read, others may read it, or its length is not allowed.
    """
    with reading(f"panel_password_file {file}", "text", ConfigError):
        mode, text = file.stat().st_mode, read_text(file)
    password = text.partition("\n")[0].strip()
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"panel_password_file {file}: others may read it; run chmod 600 {file}")
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_SECRET:
        raise ConfigError(
            f"panel_password_file {file}: the password has {len(password)} characters, it must "
            f"have {SHORTEST_PASSWORD} to {LONGEST_SECRET}"
        )
    return password
