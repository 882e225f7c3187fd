"""The admin's lists: read-only, through the Repository, whatever the broker."""

from __future__ import annotations

import html
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connections, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from asynctasq import _runtime
from asynctasq.core.message import Message, new_id, utcnow
from asynctasq_django.admin import RepositoryAdmin
from tests.django.app.models import Note
from tests.django.app.tasks import accept, fail
from tests.django.conftest import Broker

pytestmark = pytest.mark.django_db(transaction=True)
TASKS, DEAD = "admin:asynctasq_django_task_changelist", "admin:asynctasq_django_deadletter_changelist"
HISTORY = "admin:asynctasq_django_task_history"
TASK, DEAD_LETTER = "admin:asynctasq_django_task_change", "admin:asynctasq_django_deadletter_change"
EVIL = "<script>alert('x')</script>"


@pytest.fixture
def here(use: Callable[..., Broker]) -> Broker:
    return use("sqlite")


@pytest.fixture
def admin() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("admin"))
    return client


def staff(*permissions: str) -> Client:
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def page(client: Client, name: str, *arguments: str, **query: str) -> str:
    response = client.get(reverse(name, args=arguments), query)
    assert response.status_code == 200
    return response.content.decode()


def ids(text: str) -> list[str]:
    """The tasks that a list shows."""
    return re.findall(r'<th class="field-id"><a href="[^"]*">([^<]*)</a>', text)


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_tasks_are_listed_the_newest_first(broker: Broker, admin: Client) -> None:
    sent = [accept(n).on_queue(broker.queue).dispatch_sync() for n in range(3)]
    assert ids(page(admin, TASKS, queue=broker.queue)) == sent[::-1]


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_dead_letter_shows_its_error_and_its_arguments(broker: Broker, admin: Client) -> None:
    id = fail("no more éclairs").dispatch_sync()
    broker.drain()
    assert ids(page(admin, DEAD, queue=broker.queue)) == [id]
    for name in (TASK, DEAD_LETTER):
        text = html.unescape(page(admin, name, id))
        assert "RuntimeError" in text
        assert "Traceback" in text
        assert "'no more éclairs'" in text
        assert "1/1" in text


def test_a_dead_letters_page_is_only_for_dead_letters(here: Broker, admin: Client) -> None:
    id = accept().dispatch_sync()
    assert ids(page(admin, DEAD)) == []
    assert admin.get(reverse(DEAD_LETTER, args=[id])).status_code == 302


def test_an_id_is_found_exactly(here: Broker, admin: Client) -> None:
    first, second = (accept().dispatch_sync() for _ in range(2))
    assert ids(page(admin, TASKS, q=f" {first} ")) == [first]
    assert ids(page(admin, TASKS, q=second[:10])) == []
    assert ids(page(admin, TASKS, q="'; --")) == []


def test_status_and_queue_are_filters(here: Broker, admin: Client) -> None:
    pending = accept().dispatch_sync()
    scheduled = accept().delay(60).dispatch_sync()
    elsewhere = accept().on_queue("elsewhere").dispatch_sync()
    assert ids(page(admin, TASKS, status="scheduled")) == [scheduled]
    assert ids(page(admin, TASKS, queue="elsewhere")) == [elsewhere]
    assert ids(page(admin, TASKS, queue=here.queue, status="pending")) == [pending]
    text = page(admin, TASKS)
    assert "?status=dead" in text
    assert f"?queue={here.queue}" in text


def test_the_next_page_goes_on_where_this_one_ends(
    here: Broker, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RepositoryAdmin, "list_per_page", 4)
    sent = [accept(n).dispatch_sync() for n in range(10)]
    accept().on_queue("elsewhere").dispatch_sync()
    seen: list[str] = []
    text = page(admin, TASKS, queue=here.queue)
    for _ in range(3):
        seen += ids(text)
        link = re.search(r'<a href="(\?[^"]*)">Next page', text)
        if link is None:
            break
        response = admin.get(reverse(TASKS) + html.unescape(link[1]))
        text = response.content.decode()
    assert seen == sent[::-1]
    assert "Next page" not in text


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_page_is_two_queries_and_counts_nothing(broker: Broker, admin: Client) -> None:
    id = fail("x").dispatch_sync()
    broker.drain()
    page(admin, TASK, id)  # Django keeps what it learns of content types
    for name, arguments in ((TASKS, []), (DEAD, []), (TASK, [id])):
        with CaptureQueriesContext(connections["default"]) as queries:
            page(admin, name, *arguments)
        statements = [query["sql"] for query in queries]
        assert len(statements) <= 2, statements
        assert not re.search(r"count\(|distinct", " ".join(statements), re.IGNORECASE)


# Who may look


def pages(id: str) -> list[str]:
    return [reverse(TASKS), reverse(DEAD), reverse(TASK, args=[id])]


def test_whoever_is_not_logged_in_is_asked_to(here: Broker) -> None:
    for path in pages(accept().dispatch_sync()):
        response = Client().get(path)
        assert response.status_code == 302
        assert response["Location"].startswith("/admin/login/")


def test_staff_without_permission_is_refused(here: Broker) -> None:
    client = staff()
    for path in pages(accept().dispatch_sync()):
        assert client.get(path).status_code == 403


def test_the_permission_to_view_shows_all_pages(here: Broker) -> None:
    client = staff("view_task", "view_deadletter")
    id = fail("x").dispatch_sync()
    here.drain()
    for path in [
        *pages(id),
        reverse(DEAD_LETTER, args=[id]),
        reverse("admin:asynctasq_django_task_history", args=[id]),
    ]:
        assert client.get(path).status_code == 200


def test_one_permission_is_not_the_other(here: Broker) -> None:
    client = staff("view_task")
    assert client.get(reverse(TASKS)).status_code == 200
    assert client.get(reverse(DEAD)).status_code == 403


def test_nobody_changes_anything(here: Broker, admin: Client) -> None:
    id = fail("x").dispatch_sync()
    here.drain()
    before = here.tasks()
    for model in ("task", "deadletter"):
        add = reverse(f"admin:asynctasq_django_{model}_add")
        delete = reverse(f"admin:asynctasq_django_{model}_delete", args=[id])
        change = reverse(f"admin:asynctasq_django_{model}_change", args=[id])
        everything = reverse(f"admin:asynctasq_django_{model}_changelist")
        assert [admin.get(path).status_code for path in (add, delete)] == [403, 403]
        assert [admin.post(path, {"post": "yes"}).status_code for path in (add, delete, change)] == [403] * 3
        chosen = {"action": "delete_selected", "_selected_action": [id], "post": "yes", "index": "0"}
        assert admin.post(everything, chosen).status_code == 200
    assert here.tasks() == before


def test_only_permissions_to_view_exist() -> None:
    found = Permission.objects.filter(content_type__app_label="asynctasq_django").values_list("codename", flat=True)
    assert sorted(found) == ["view_deadletter", "view_task"]


# What brokers hold and users write


def put(broker: Broker, **fields: Any) -> str:
    """Enqueue a message as a hostile program might have made it."""
    given = {"id": new_id(), "queue": broker.queue, "task": "x", "body": b"", "created_at": utcnow(), "max_attempts": 1}
    message = Message(**{**given, **fields})
    runtime = _runtime.runtime()
    runtime.dispatcher.send_sync(runtime.config.driver, [message])
    return message.id


def test_names_arguments_and_errors_are_escaped(here: Broker, admin: Client) -> None:
    ids_ = [
        put(here, task=EVIL, correlation_id=EVIL),
        fail(EVIL).correlation_id(EVIL).dispatch_sync(),
        accept({EVIL: EVIL}, EVIL).dispatch_sync(),
    ]
    here.drain()
    accept(EVIL).dispatch_sync()
    everything = page(admin, TASKS) + page(admin, DEAD) + "".join(page(admin, TASK, id) for id in ids_[:2])
    everything += page(admin, TASKS, queue=EVIL) + page(admin, TASKS, status=EVIL) + page(admin, TASKS, q=EVIL)
    assert EVIL in html.unescape(everything)
    assert "<script>alert" not in everything


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x00" * 100, b"\x92\x90"])
def test_an_undecodable_payload_is_shown_as_such(here: Broker, admin: Client, body: bytes) -> None:
    id = put(here, body=body)
    text = html.unescape(page(admin, TASK, id))
    assert re.search(r"<\d+ bytes, not shown: ", text)


def test_an_argument_that_lives_in_the_database_is_not_fetched(here: Broker, admin: Client) -> None:
    id = accept(Note.objects.create(text="x")).dispatch_sync()
    page(admin, TASKS)
    with CaptureQueriesContext(connections["default"]) as queries:
        text = html.unescape(page(admin, TASK, id))
    assert "<django.model ['app', 'note'," in text
    assert not [query for query in queries if "app_note" in query["sql"]]


def test_long_arguments_are_cut(here: Broker, admin: Client) -> None:
    id = accept("é" * 100_000).dispatch_sync()
    assert len(page(admin, TASK, id)) < 60_000


@pytest.mark.parametrize("query", [{"cursor": "nonsense"}, {"cursor": "\0"}, {"status": "nonsense"}, {"queue": "\0"}])
@pytest.mark.django_db(transaction=True, databases="__all__")
def test_nonsense_in_the_address_is_no_error_of_the_server(broker: Broker, admin: Client, query: Any) -> None:
    accept().dispatch_sync()
    page(admin, TASKS, **query)


@pytest.mark.parametrize("query", [{"task__exact": "x"}, {"o": "1"}, {"p": "7"}, {"all": ""}, {"nonsense": "1"}])
def test_lookups_that_are_not_ours_lead_back_to_the_list(here: Broker, admin: Client, query: Any) -> None:
    accept().dispatch_sync()
    response = admin.get(reverse(TASKS), query, follow=True)
    assert response.status_code == 200
    assert len(ids(response.content.decode())) == 1


def test_an_id_that_is_not_there_leads_to_the_index(here: Broker, admin: Client) -> None:
    for id in ("no-such-id", "\0", "ü" * 100, "../../etc"):
        assert admin.get(reverse(TASK, args=[id])).status_code in (302, 404)


@pytest.mark.django_db(transaction=True)
def test_a_page_is_read_while_a_transaction_writes(here: Broker, admin: Client) -> None:
    id = accept().dispatch_sync()
    with transaction.atomic():
        Note.objects.create(text="x")
        assert ids(page(admin, TASKS)) == [id]


@pytest.mark.parametrize(
    "given",
    [
        {"driver": "redis", "redis_url": "redis://127.0.0.1:9"},
        {"driver": "postgres", "postgres_dsn": "postgresql://127.0.0.1:9/nowhere"},
    ],
)
def test_a_broker_that_is_down_is_a_message(settings: Any, admin: Client, given: dict[str, Any]) -> None:
    settings.ASYNCTASQ = given
    for name in (TASKS, DEAD):
        assert "The broker cannot be read: " in page(admin, name)
    response = admin.get(reverse(TASK, args=["some-id"]), follow=True)
    assert response.status_code == 200
    assert "The broker cannot be read: " in response.content.decode()


def test_a_broker_that_does_not_answer_costs_two_seconds(settings: Any, admin: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.ASYNCTASQ = {"driver": "redis", "redis_url": f"redis://127.0.0.1:{silent.getsockname()[1]}"}
        start = time.monotonic()
        text = page(admin, TASKS)
        assert "The broker cannot be read: " in text
        assert time.monotonic() - start < 3


def test_wrong_settings_are_a_message(settings: Any, admin: Client) -> None:
    settings.ASYNCTASQ = {"redis_db": 99}
    assert "The broker cannot be read: " in page(admin, TASKS)


def test_the_index_lists_both(here: Broker, admin: Client) -> None:
    text = admin.get("/admin/").content.decode()
    assert reverse(TASKS) in text
    assert reverse(DEAD) in text
