"""Who may ask a server of ours: this machine alone, or whoever has the token."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from nrt.errors import InputError

GOOD_TOKEN = re.compile("[!-~]{16,}")


def token_of(variable: str) -> str:
    """The token in an environment variable (an option would show in the list of processes); empty where there is none.

    Raises InputError for one that is not fit to keep anyone out.
    """
    token = os.environ.get(variable, "")
    if token and not GOOD_TOKEN.fullmatch(token):
        raise InputError(f"{variable} is not 16 or more visible ASCII characters; set another")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost counts as one that others can.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, True, False, False)
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name in a Host header, without the port; empty where it is none.

    >>> host_of("localhost:8642"), host_of("[::1]:8642"), host_of("[")
    ('localhost', '::1', '')
    """
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
