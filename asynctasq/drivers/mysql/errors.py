"""What the server's error numbers mean to us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import MySQLdb
from MySQLdb.constants import CR, ER

from asynctasq.config import Config, mask_url
from asynctasq.errors import (
    AsyncTasQError,
    BrokerFull,
    BrokerUnavailable,
    ConfigurationError,
    EncodeError,
    PayloadTooLarge,
)

REPEATS = 5

ROLLED_BACK = {ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, ER.CHECKREAD}
"""The server has done nothing, and asks for a repetition."""
READ_ONLY = {ER.OPTION_PREVENTS_STATEMENT, ER.CANT_EXECUTE_IN_READ_ONLY_TRANSACTION, ER.READ_ONLY_MODE}
GONE = {
    0,  # The client's own: the connection is closed.
    CR.SERVER_GONE_ERROR,
    CR.SERVER_LOST,
    CR.SERVER_LOST_EXTENDED,
    CR.CONNECTION_ERROR,
    CR.CONN_HOST_ERROR,
    CR.UNKNOWN_HOST,
    CR.COMMANDS_OUT_OF_SYNC,
    ER.SERVER_SHUTDOWN,
    ER.QUERY_INTERRUPTED,
    1927,  # MariaDB: the connection was killed.
    3169,  # MySQL: the session was killed.
    4031,  # MySQL: it was idle for too long.
} | READ_ONLY
"""The connection is of no more use, nor are most likely the others; or the server became a replica."""
FULL = {ER.RECORD_FILE_FULL, 1021, ER.OUT_OF_RESOURCES}
OTHER_TABLES = {ER.NO_SUCH_TABLE, ER.BAD_FIELD_ERROR}
NEEDS_A_PERSON = {
    ER.DBACCESS_DENIED_ERROR,
    ER.ACCESS_DENIED_ERROR,
    ER.BAD_DB_ERROR,
    ER.TABLEACCESS_DENIED_ERROR,
    ER.COLUMNACCESS_DENIED_ERROR,
    ER.SPECIFIC_ACCESS_DENIED_ERROR,
    ER.HOST_NOT_PRIVILEGED,
    ER.ACCESS_DENIED_NO_PASSWORD_ERROR,
    ER.PARSE_ERROR,
    CR.SSL_CONNECTION_ERROR,
    CR.AUTH_PLUGIN_CANNOT_LOAD,
}


def _code(exc: MySQLdb.Error) -> int:
    return exc.args[0] if exc.args and isinstance(exc.args[0], int) else 0


def is_gone(exc: MySQLdb.Error) -> bool:
    """Whether the connection is of no more use."""
    return _code(exc) in GONE


def may_repeat(exc: MySQLdb.Error, attempt: int, repeatable: bool) -> bool:
    """Whether a call that failed in this attempt is to be made again; ``repeatable`` if its result may be unknown."""
    code = _code(exc)
    return attempt < REPEATS if code in ROLLED_BACK else repeatable and code in GONE and attempt == 1


@contextlib.contextmanager
def errors(config: Config) -> Iterator[None]:
    """The client's errors as ours."""
    try:
        yield
    except MySQLdb.Error as exc:
        raise translated(exc, config) from exc


def translated(exc: MySQLdb.Error, config: Config) -> AsyncTasQError:
    """An error of the client as one of ours. Its texts name host and user but not the password."""
    where, code = mask_url(config.mysql_dsn), _code(exc)
    text = str(exc.args[-1] if exc.args else exc).strip() or type(exc).__name__
    if code in OTHER_TABLES:
        return ConfigurationError(
            f"the queue tables are missing or of another version at {where}: run 'asynctasq migrate', "
            f"or 'manage.py migrate' in a Django project ({text})"
        )
    if code in FULL or (code == ER.GET_ERRNO and "28" in text):
        return BrokerFull(f"{where}: {text}")
    if code in NEEDS_A_PERSON:
        return ConfigurationError(f"{where}: {text}")
    if code == ER.NET_PACKET_TOO_LARGE:
        return PayloadTooLarge(f"{where}: {text}")
    if isinstance(exc, MySQLdb.DataError):
        return EncodeError(f"{where} cannot store this: {text}")
    return BrokerUnavailable(f"{where}: {text}")
