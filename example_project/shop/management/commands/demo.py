"""Runs the example's work once, from an empty database to the last task, and shows what became of it."""

import asyncio
import time
from collections import Counter
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

import asynctasq
from asynctasq.drivers.base import TaskInfo, TaskQuery
from example_project import running
from example_project.shop import catalogue, geography, tasks
from example_project.shop.models import Airport, Photo
from example_project.shop.views import HIGH_AIRFIELD

DAMAGED = {"rocket-broken-off"}
"""Photographs of which no thumbnail can be made."""

KINDS = {
    tasks.import_country.task_name: "sync: ORM",
    tasks.quote_freight.task_name: "async: HTTP",
    tasks.LongestFlight.task_name: "async, in a process: statistics",
    tasks.Thumbnail.task_name: "sync, in a process: images",
}
COLUMNS = ("dispatched", "completed", "retried", "dead")
Counts = dict[str, Counter[str]]
"""For each task's name, how many of each column."""

AFTERWARDS = """
Everything ended as it had to. A high airfield's first answer is 503, so its task ran twice; the photograph whose
upload broke off has its tasks in the dead letters. Next:
  make serve                           website, admin and worker together until Ctrl-C
  ASYNCTASQ_DRIVER=postgres make demo  the same on PostgreSQL; or mysql, redis
  make test                            every test, on real databases and brokers"""


def expected() -> Counts:
    """What has to come of the work, reckoned from the data alone."""
    countries = geography.airports_by_country().values()
    hubs = [hub for airports in countries if (hub := geography.hub(airports))]
    damaged = len(DAMAGED) * len(catalogue.WIDTHS)
    thumbnails = len(list(catalogue.photographs())) * len(catalogue.WIDTHS)

    def counts(dispatched: int, retried: int = 0, dead: int = 0) -> Counter[str]:
        return Counter(dispatched=dispatched, completed=dispatched - dead, retried=retried, dead=dead)

    return {
        tasks.import_country.task_name: counts(len(countries)),
        tasks.quote_freight.task_name: counts(len(hubs), retried=sum(h["elevation"] > HIGH_AIRFIELD for h in hubs)),
        tasks.LongestFlight.task_name: counts(sum(len(airports) > 1 for airports in countries)),
        tasks.Thumbnail.task_name: counts(thumbnails, dead=damaged),
    }


async def all_tasks() -> list[TaskInfo]:
    """Every task of the example's queue, whatever its state."""
    found: list[TaskInfo] = []
    cursor = None
    while True:
        page = await asynctasq.repository().find(TaskQuery(queue=settings.NAME, cursor=cursor, limit=500))
        found += page.items
        cursor = page.next
        if cursor is None:
            return found


async def forget_earlier_tasks() -> None:
    """Empty the example's own queue, and no other, on a broker that outlives the database."""
    await asynctasq.repository().delete([task.id for task in await all_tasks()])


def happened(infos: list[TaskInfo]) -> Counts:
    counts: Counts = {name: Counter() for name in KINDS}
    for info in infos:
        of_task = counts[info.task]
        of_task["dispatched"] += 1
        of_task[info.status] += 1
        of_task["retried"] += max(info.attempt - 1, 0)
    return counts


def show(counts: Counts) -> None:
    total = sum(counts.values(), Counter())
    print(f"\n{'task':18}{'kind':34}" + "".join(f"{column:>11}" for column in COLUMNS))
    for name, of_task in [*counts.items(), ("in all", total)]:
        numbers = "".join(f"{of_task[column]:11,}" for column in COLUMNS)
        print(f"{name.rpartition('.')[2]:18}{KINDS.get(name, ''):34}{numbers}")


def differences(counts: Counts) -> list[str]:
    """What did not end as expected, in words."""
    wanted = expected()
    problems = [
        f"{name}: {of_task[column]} {column}, expected {wanted[name][column]}"
        for name, of_task in counts.items()
        for column in COLUMNS
        if of_task[column] != wanted[name][column]
    ]
    airports = sum(map(len, geography.airports_by_country().values()))
    if Airport.objects.count() != airports:
        problems.append(f"{Airport.objects.count()} airports in the database, expected {airports}")
    unusable = set(Photo.objects.exclude(problem="").values_list("slug", flat=True))
    if unusable != DAMAGED:
        problems.append(f"photographs found unusable: {sorted(unusable)}, expected {sorted(DAMAGED)}")
    return problems


def run() -> float:
    """Start the site, dispatch, and have a worker drain the queue; the seconds that the worker took."""
    port = running.free_port()
    log = settings.VAR_DIR / "demo.log"
    with log.open("w") as output, running.site(port, output):
        print(f"site        http://{running.LOOPBACK}:{port}")
        began = time.monotonic()
        dispatched = catalogue.load_photographs() + catalogue.load_countries()
        print(f"dispatched  {dispatched} tasks in {time.monotonic() - began:.2f} s; they dispatch more")
        print("worker      manage.py asynctasq_worker --drain", flush=True)
        began = time.monotonic()
        with running.worker(port, "--drain", output=output) as worker:
            code = worker.wait(timeout=300)
        seconds = time.monotonic() - began
    if code:
        raise CommandError(f"{log.read_text()}\nthe worker ended with exit code {code}")
    return seconds


def report(infos: list[TaskInfo], seconds: float) -> None:
    counts = happened(infos)
    show(counts)
    thumbnails = list(settings.MEDIA_ROOT.glob("*.jpg"))
    print(f"\nseconds     {seconds:.1f}, the worker's start and end included")
    print(f"tasks/s     {len(infos) / seconds:.0f}")
    print(f"files       {len(thumbnails)} thumbnails in {settings.MEDIA_ROOT}")
    print(f"database    {settings.DATABASES['default']['NAME']}, {Airport.objects.count():,} airports")
    print(f"log         {settings.VAR_DIR / 'demo.log'}")
    if problems := differences(counts):
        raise CommandError("not as expected:\n  " + "\n  ".join(problems))
    print(AFTERWARDS)


class Command(BaseCommand):
    help = "Run the example's work once and show what became of it; fails unless every task ended as it had to."
    requires_system_checks = []  # there is no database yet

    def handle(self, *args: Any, **options: Any) -> None:
        print(f"driver      {settings.DRIVER}")
        with running.alone():
            running.make_database(fresh=True)
            asyncio.run(forget_earlier_tasks())
            seconds = run()
            infos = asyncio.run(all_tasks())
            report(infos, seconds)
