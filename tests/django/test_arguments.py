"""Model instances travel as references."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import connections
from django.utils.functional import SimpleLazyObject
from django.utils.html import conditional_escape
from django.utils.safestring import mark_safe

from asynctasq import _runtime
from asynctasq.core import codec
from asynctasq.core.message import Message, new_id, utcnow
from asynctasq.errors import DecodeError, EncodeError
from asynctasq.testing import captured
from asynctasq_django.arguments import ModelGone
from tests.django.app.models import Note, Tagged
from tests.django.app.tasks import accept, rename, rename_async, retag
from tests.django.conftest import Broker, notes

pytestmark = pytest.mark.django_db(databases="__all__")
COMMITTED = pytest.mark.django_db(transaction=True, databases="__all__")
"""For tests with a worker, which sees only what was committed."""


def travelled(value: Any) -> Any:
    (args, _) = codec.decode_arguments(codec.encode_arguments((value,), {}))
    return args[0]


def reference(*parts: Any) -> bytes:
    """The body of a message whose one argument refers to what ``parts`` say."""
    inner = msgspec.msgpack.encode(["django.model", parts])
    return msgspec.msgpack.encode([[msgspec.msgpack.Ext(codec._CUSTOM, inner)], {}])


@pytest.mark.behaviour(14)
def test_instances_arrive_as_the_database_has_them_by_then() -> None:
    note = Note.objects.create(text="old")
    body = codec.encode_arguments((note,), {"deep": {"list": [note]}})
    Note.objects.update(text="new")
    args, kwargs = codec.decode_arguments(body)
    assert (args[0].pk, args[0].text) == (note.pk, "new")
    assert kwargs["deep"]["list"] == [note]


def test_instances_come_from_the_database_they_were_in() -> None:
    there = Note.objects.using("postgres").create(text="there")
    Note.objects.create(pk=there.pk, text="here")
    arrived = travelled(there)
    assert (arrived.text, arrived._state.db) == ("there", "postgres")


def test_primary_keys_need_not_be_numbers() -> None:
    tagged = Tagged.objects.create(tag="x")
    assert travelled(tagged) == tagged


def test_deferred_instances_travel() -> None:
    Note.objects.create(text="x")
    note = Note.objects.only("pk").get()
    assert travelled(note).text == "x"


def test_a_lazy_instance_arrives_as_the_instance() -> None:
    """As ``request.user`` is one."""
    note = Note.objects.create(text="x")
    arrived = travelled({"lazy": SimpleLazyObject(lambda: Note.objects.get())})["lazy"]
    assert (type(arrived), arrived) == (Note, note)
    with pytest.raises(EncodeError, match=r"args\[0\] is a .*AnonymousUser, which cannot travel"):
        travelled(SimpleLazyObject(AnonymousUser))


def test_safe_strings_arrive_safe() -> None:
    arrived = travelled([mark_safe("<b>"), "<b>"])
    assert [conditional_escape(text) for text in arrived] == ["<b>", "&lt;b&gt;"]


@COMMITTED
@pytest.mark.parametrize("renaming", [rename, rename_async])
def test_tasks_get_instances(use: Callable[..., Broker], renaming: Any) -> None:
    broker = use("sqlite")
    note = Note.objects.create(text="old")
    renaming(note, text="new").dispatch_sync()
    worker = broker.drain()
    assert (worker.completed, worker.dead) == (1, 0)
    assert notes() == ["new"]


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((Note(text="x"),), {}, r"args\[0\]: an unsaved app.Note: save it first"),
        ((), {"note": Note(text="x")}, r"kwargs.note: an unsaved app.Note"),
        (([{"a": Tagged(tag="x")}],), {}, r"args\[0\]\[0\].a: an unsaved app.Tagged"),
        ((Note.objects.all(),), {}, r"args\[0\]: a query set"),
        ((), {"notes": {"all": Note.objects.filter(pk=1)}}, r"kwargs.notes.all: a query set"),
    ],
)
def test_what_would_not_arrive_is_refused_with_its_path(arguments: Any, options: Any, text: str) -> None:
    with captured() as held:
        with pytest.raises(EncodeError, match=text):
            accept(*arguments, **options).dispatch_sync()
        assert held.messages == []


def test_a_deleted_instance_is_refused() -> None:
    note = Note.objects.create(text="x")
    note.delete()
    with pytest.raises(EncodeError, match="unsaved"):
        travelled(note)


@COMMITTED
@pytest.mark.parametrize("work", [rename, rename_async])
def test_a_task_whose_row_is_gone_ends_in_the_dead_letters_at_once(broker: Broker, work: Any) -> None:
    note = Note.objects.create(text="x")
    pk = note.pk
    work(note, text="y").max_attempts(3).dispatch_sync()
    Note.objects.all().delete()
    worker = broker.drain()
    assert (worker.retried, worker.dead) == (0, 1)
    (info,) = broker.dead()
    assert info.error is not None
    assert info.error.type == "asynctasq_django.arguments.ModelGone"
    assert info.error.message == f"app.note with primary key '{pk}' is gone"
    assert info.attempt == 1


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("no_such_app", "thing", 1, "default"), "a model that is not there: No installed app"),
        (("this", "s", 1, "default"), "a model that is not there"),
        (("app", "nothing", 1, "default"), "a model that is not there"),
        (("app", "note", 1, "elsewhere"), "a model that is not there: The connection 'elsewhere'"),
        (("app", "note", "x", "default"), "undecodable arguments: ValueError"),
        (("app", "note", [1], "default"), "undecodable arguments: TypeError"),
        (("app", "note", {"a": 1}, "default"), "undecodable arguments: TypeError"),
        (("app", "tagged", "no uuid", "default"), "app.tagged has no such primary keys"),
        (("app", "note", 2**63, "default"), "is gone"),
        (("app", "note", 2**63, "postgres"), "is gone"),
        (("sessions", "session", "a\0b", "postgres"), "undecodable|no such"),
        (("app", "note"), "malformed reference"),
        ((1, 2, 3, 4), "malformed reference"),
        ((), "malformed reference"),
    ],
)
def test_a_reference_to_anything_else_is_undecodable(parts: Any, text: str) -> None:
    with pytest.raises(DecodeError, match=text):
        codec.decode_arguments(reference(*parts))


@COMMITTED
def test_a_reference_in_a_message_imports_nothing(broker: Broker) -> None:
    # A module that is there and that nobody imported.
    module = "tests.django.bait"
    message = Message(
        id=new_id(),
        queue=broker.queue,
        task="tests.django.app.tasks.accept",
        body=reference(module, "Model", 1, "default"),
        created_at=utcnow(),
    )
    runtime = _runtime.runtime()
    runtime.dispatcher.send_sync(runtime.config.driver, [message])
    broker.drain()
    (info,) = broker.dead()
    assert info.error is not None
    assert "a model that is not there" in info.error.message
    assert module not in sys.modules


def test_gone_rows_are_a_kind_of_undecodable_arguments() -> None:
    with pytest.raises(ModelGone, match=r"app.tagged with primary key .* is gone"):
        codec.decode_arguments(reference("app", "tagged", str(uuid.uuid4()), "default"))


def test_a_row_of_the_queue_itself_cannot_be_referred_to(use: Callable[..., Broker]) -> None:
    use("sqlite")
    id = accept().dispatch_sync()
    with pytest.raises(ModelGone):
        codec.decode_arguments(reference("asynctasq_django", "task", id, "default"))


def test_fetching_is_one_query(django_assert_num_queries: Any) -> None:
    body = codec.encode_arguments((Tagged.objects.create(tag="x"),), {})
    with django_assert_num_queries(1, connection=connections["default"]):
        codec.decode_arguments(body)


def test_the_message_holds_the_reference_alone() -> None:
    with captured() as held:
        retag(Tagged.objects.create(tag="a secret"), tag="b").dispatch_sync()
    (message,) = held.messages
    assert b"a secret" not in message.body
