"""MySQL 8 or MariaDB 10.6 and newer, on mysqlclient in a few threads. The tables and statements are in
``asynctasq/drivers/sql/mysql.sql``.

MySQL tells nobody of new work, so a claim that waits looks again: at once when this process made work, else in steps
that grow while there is none.
"""

from asynctasq.drivers.mysql.driver import MySqlDriver

__all__ = ["MySqlDriver"]
