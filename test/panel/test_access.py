"""Who may open the operator's page: addresses, names, origins and secrets."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from cosmos_policy_ros.core.errors import ConfigError
from cosmos_policy_ros.panel.access import Access, read_password

PASSWORD = "correct horse"  # noqa: S105 - a test's
OPEN = Access(address="0.0.0.0", password=PASSWORD)  # noqa: S104 - what is tested


@pytest.mark.parametrize("host", ["127.0.0.1:8780", "localhost:8780", "[::1]:8780", "localhost"])
def test_this_machines_own_names_are_served(host: str) -> None:
    assert Access().admits_host(host)
    assert OPEN.admits_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example:8780", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1"]
)
def test_a_foreign_name_that_was_pointed_here_is_not_served(host: str) -> None:
    assert not Access().admits_host(host)
    assert not OPEN.admits_host(host)


def test_on_a_network_the_machine_has_its_addresses_and_its_name() -> None:
    assert OPEN.admits_host("192.168.1.7:8780")
    assert not Access().admits_host("192.168.1.7:8780")
    with patch("socket.gethostname", return_value="Rig-1"):
        assert OPEN.admits_host("rig-1:8780")
        assert not Access().admits_host("rig-1:8780")


def test_only_the_pages_own_origin_may_open_a_socket() -> None:
    host = "127.0.0.1:8780"
    assert Access().admits_origin(f"http://{host}", host)
    for foreign in (None, "null", "", f"https://{host}", "http://127.0.0.1:8781", "http://evil"):
        assert not Access().admits_origin(foreign, host)


def test_only_the_token_or_the_password_opens_it() -> None:
    access = Access(password=PASSWORD)
    assert access.admits_secret(access.token)
    assert access.admits_secret("correct horse")
    for wrong in (
        "",
        "correct",
        access.token[:-1],
        None,
        7,
        ["correct horse"],
        "x" * 5000,
        "é",
        "\ud800",
    ):
        assert not access.admits_secret(wrong)
    assert not Access().admits_secret(""), "no password is not an empty one"


def test_every_start_has_a_token_of_its_own_that_is_not_printed_by_accident() -> None:
    first, second = Access(), Access(password=PASSWORD)
    assert first.token != second.token and len(first.token) > 40
    assert first.token not in repr(first) and "horse" not in repr(second)
    assert first.url(8780) == f"http://127.0.0.1:8780/#token={first.token}"
    assert Access(address="::1").url(1).startswith("http://[::1]:1/#token=")
    assert OPEN.url(1).startswith("http://localhost:1/#token=")


def test_beyond_this_machine_it_needs_a_password_or_tls(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"192.168.1.7 is open to the network.*ssh tunnel"):
        Access(address="192.168.1.7")
    file = tmp_path / "rig.pem"
    file.touch()
    assert Access(address="192.168.1.7", certificate=file, key=file).scheme == "https"
    with pytest.raises(ConfigError, match="go together"):
        Access(certificate=file)
    with pytest.raises(ConfigError, match="no such file"):
        Access(certificate=tmp_path / "rig.crt", key=file)
    with pytest.raises(ConfigError, match=r"'rig-1' must be an IP address"):
        Access(address="rig-1")


def test_a_password_is_long_and_its_file_is_the_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "password"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_password(file)
    file.write_text("correct horse\nsecond line\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"others may read it; run chmod 600"):
        read_password(file)
    file.chmod(0o600)
    assert read_password(file) == "correct horse"
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="has 5 characters, it must have 12 to 1024"):
        read_password(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_password(file)
