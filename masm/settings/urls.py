"""Addresses of databases and servers, as they may be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

SECRET_KEYS = ("password", "passfile", "sslpassword")
"""What drivers of databases take as part of a URL's query, too."""

UNREADABLE = "URL"
"""What is shown of one that cannot be read, or not safely."""


def secrets_of(url: str) -> list[str]:
    """The passwords in a URL, and the file of them; none where it cannot be read.

    Args:
        url: of a database or a server, as SQLAlchemy takes it: a password may have `/`, `?` or `#` in it.
    """
    if (made := _parsed(url)) is None:
        return []
    in_query = [value for key in SECRET_KEYS for value in made.normalized_query.get(key, ())]
    return [secret for secret in (str(made.password or ""), *in_query) if secret]


def without_secrets(url: str) -> str:
    """A URL without name and password, to be shown; a path as it is."""
    if "://" not in url:
        return url
    made = _parsed(url)
    if made is None or (made.username is not None and "@" in (made.database or "")):
        return UNREADABLE  # any part of it may be a password's
    if made.username is None and not secrets_of(url):
        return url
    host = (made.host or "").rpartition("@")[2] or None
    bare = type(made).create(made.drivername, host=host, port=made.port, database=made.database, query=made.query)
    return bare.difference_update_query(SECRET_KEYS).render_as_string()


def _parsed(url: str) -> URL | None:
    from sqlalchemy.engine import make_url  # most that reads settings needs no database
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        return None
