"""The catalog: what there is and whose it is, in one database.

Invariants: what a function has returned from is in the database for good; a tenant's functions
find nothing of another tenant, to whom it is as if it were not there.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from kvasir.catalog import tables
from kvasir.catalog.contexts import Contexts
from kvasir.catalog.database import Database, open_database
from kvasir.catalog.events import Events
from kvasir.catalog.files import Files
from kvasir.catalog.idempotency import Idempotency
from kvasir.catalog.keys import Keys
from kvasir.catalog.migrations import migrate
from kvasir.catalog.tenants import Tenants
from kvasir.core.errors import CatalogUnavailable, ConfigError


class Catalog:
    """All tables of a database. Threads may share it; every call is short and waits for nothing but
    the database, at most some tens of seconds. Calls raise ``CatalogUnavailable``."""

    def __init__(self, database: Database) -> None:
        """``database`` must have been migrated, see ``open_catalog``."""
        self._database = database
        self.told = database.told  # how to speak of the database; without a password
        self.tenants = Tenants(database)
        self.keys = Keys(database)
        self.files = Files(database)
        self.contexts = Contexts(database)
        self.events = Events(database)
        self.idempotency = Idempotency(database)

    def claim(self, home: str, *, has_texts: bool = False) -> None:
        """Make this the catalog of the home with that digest; the first one has it. ``has_texts``
        says that files or contexts lie in it.

        They lie in a home, so a second one would find rows without what they name, and a second
        catalog would take them for what nobody names any more. Raises ``ConfigError`` for both.
        """
        with self._database.write() as connection:
            owner = connection.execute(select(tables.home.c.digest)).scalar()
            if owner is None:
                if has_texts and not self._names_any(connection):
                    raise ConfigError(
                        f"the database {self.told} is new, and files or contexts are in the home\n"
                        "another database names them; with this one they would be removed\n"
                        "name that one with the setting `database`, or another home; or remove the "
                        "folders files and contexts from this one"
                    )
                connection.execute(insert(tables.home).values(digest=home))
            elif owner != home:
                raise ConfigError(
                    f"the database {self.told} is the catalog of another home\n"
                    "what its rows name lies in that one\n"
                    "name another database with the setting `database`, or the home that it is of"
                )

    def _names_any(self, connection: Connection) -> bool:
        """Whether there is a row of a file or a context."""
        return any(
            connection.execute(select(table.c.id).limit(1)).first() is not None
            for table in (tables.files, tables.contexts)
        )

    def close(self) -> None:
        """Give back all connections; nothing may be called any more."""
        self._database.close()


def open_catalog(url: str) -> Catalog:
    """The catalog in the database at ``url``, brought up to date.

    ``sqlite:////path`` is a file, made with mode 0600; ``sqlite://`` lies in memory and goes with
    the catalog; ``postgresql://user:password@host/name`` (or ``…?host=/folder/of/its/socket``) is
    a server's. Raises ``ConfigError`` where it is none of these or cannot be used.
    """
    database = open_database(url)
    try:
        migrate(database)
    except CatalogUnavailable as error:
        database.close()
        first, *_ = str(error).splitlines()
        raise ConfigError(
            f"{first}\ntenants, keys, files and contexts are listed in it\n"
            "see that it is there and takes you, or name another one with the setting `database`"
        ) from error
    except BaseException:
        database.close()
        raise
    return Catalog(database)
