"""``manage.py asynctasq_health``."""

from __future__ import annotations

from argparse import Namespace

from asynctasq import Config, _sync, cli, drivers
from asynctasq_django.management.base import CoreCommand


class Command(CoreCommand):
    help = "Exit with 0 if the broker answers and its tables are there, else with 1."

    def execute_core(self, namespace: Namespace) -> int:
        config = Config.get()

        async def reach() -> None:
            driver = drivers.create(config.driver, config)
            await driver.connect()
            await driver.close()

        _sync.run(reach())
        self.stdout.write(f"{config.driver}: answers")
        return cli.OK
