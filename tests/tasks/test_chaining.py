"""Options set for one call, and which option wins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import asynctasq
from asynctasq import AsyncTask, SyncTask, TaskConfig, task
from asynctasq.core.message import Message, RetryStrategy
from asynctasq.tasks import BaseTask
from asynctasq.testing import captured
from tests.app import App


def message_of(call: BaseTask[Any]) -> Message:
    """The message that dispatching this call sends."""
    with captured() as dispatched:
        call.dispatch_sync()
    (message,) = dispatched.messages
    return message


@task(queue="decorated", max_attempts=2, timeout=8, retry_delay=3, visibility_timeout=40, priority=1)
def decorated() -> None: ...


class WithConfig(AsyncTask[None]):
    config = TaskConfig(queue="configured", max_attempts=2, timeout=8, retry_delay=3, visibility_timeout=40, priority=1)

    async def execute(self) -> None: ...


class WithAttributes(SyncTask[None]):
    queue = "attributes"
    max_attempts = 2  # type: ignore[assignment]  # the chaining method is hidden for the type checker alone
    timeout = 8  # type: ignore[assignment]
    retry_delay = 3
    visibility_timeout = 40  # type: ignore[assignment]
    priority = 1  # type: ignore[assignment]

    def execute(self) -> None: ...


@pytest.mark.behaviour(9)
@pytest.mark.parametrize("make", [decorated, WithConfig, WithAttributes])
def test_every_setter_can_be_chained_on_every_kind_of_task(embedded: App, make: Any) -> None:
    call = make()
    chained = (
        call.on_queue("here")
        .max_attempts(9)
        .retry_after(1.25)
        .timeout(17)
        .visibility_timeout(99)
        .priority(-5)
        .correlation_id("corr")
        .delay(30)
    )
    assert chained is call
    message = message_of(chained)
    assert (message.queue, message.max_attempts, message.retry_delay) == ("here", 9, 1.25)
    assert (message.timeout, message.visibility_timeout) == (17, 99)
    assert (message.priority, message.correlation_id, message.delay) == (-5, "corr", 30)


@pytest.mark.behaviour(9)
@pytest.mark.parametrize("make", [decorated, WithConfig, WithAttributes])
def test_a_chained_option_holds_for_that_call_alone(embedded: App, make: Any) -> None:
    make().on_queue("here").timeout(1).delay(5)
    message = message_of(make())
    assert message.queue in ("decorated", "configured", "attributes")
    assert (message.timeout, message.delay, message.max_attempts) == (8, 0, 2)


@pytest.mark.behaviour(9)
def test_zero_is_a_value(embedded: App) -> None:
    embedded.configure(default_retry_delay=60)

    @task(retry_delay=0)
    def work() -> None: ...

    @task
    def plain() -> None: ...

    assert message_of(work()).retry_delay == 0
    assert message_of(plain().retry_after(0)).retry_delay == 0
    assert message_of(plain()).retry_delay == 60
    assert message_of(decorated().priority(0)).priority == 0
    assert message_of(decorated().delay(5).delay(0)).delay == 0
    assert message_of(decorated().timeout(None)).timeout is None


@pytest.mark.behaviour(9)
def test_an_instant_can_be_given_instead_of_a_delay_and_the_last_one_counts(embedded: App) -> None:
    noon = datetime(2033, 1, 1, 12, tzinfo=UTC)
    assert message_of(decorated().at(noon)).available_at == noon
    elsewhere = noon.astimezone(tz=datetime.now().astimezone().tzinfo)
    assert message_of(decorated().at(elsewhere)).available_at == noon
    last = message_of(decorated().at(noon).delay(5))
    assert (last.available_at, last.delay) == (None, 5)
    last = message_of(decorated().delay(5).at(noon))
    assert (last.available_at, last.delay) == (noon, 0)


@pytest.mark.behaviour(9)
@pytest.mark.parametrize(
    ("chain", "text"),
    [
        (lambda call: call.delay(-1), "delay must be non-negative"),
        (lambda call: call.delay(float("nan")), "delay must be non-negative"),
        (lambda call: call.delay(float("inf")), "delay must be non-negative"),
        (lambda call: call.delay("5"), "delay must be a number of seconds, not str"),
        (lambda call: call.delay(True), "delay must be a number of seconds, not bool"),
        (lambda call: call.delay(timedelta(5)), "delay must be a number of seconds, not timedelta"),
        (lambda call: call.at(datetime(2033, 1, 1)), r"at\(\) needs an aware datetime"),  # noqa: DTZ001
        (lambda call: call.at(5), r"at\(\) needs an aware datetime"),
        (lambda call: call.on_queue(""), "queue must be"),
        (lambda call: call.on_queue("a{b}"), "queue must be"),
        (lambda call: call.max_attempts(0), "max_attempts must be positive"),
        (lambda call: call.max_attempts("3"), "max_attempts must be int, not str"),
        (lambda call: call.timeout(0), "timeout must be positive"),
        (lambda call: call.timeout(-1), "timeout must be positive"),
        (lambda call: call.visibility_timeout(0), "visibility_timeout must be positive"),
        (lambda call: call.retry_after(-0.1), "retry_delay must be non-negative"),
        (lambda call: call.priority(101), "priority must be between"),
        (lambda call: call.priority(1.5), "priority must be int, not float"),
        (lambda call: call.correlation_id(""), "correlation_id must be text"),
        (lambda call: call.correlation_id("x" * 256), "correlation_id must be text"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_chained(embedded: App, chain: Any, text: str) -> None:
    with pytest.raises(ValueError, match="^" + text):
        chain(decorated())


@pytest.mark.behaviour(11)
@pytest.mark.parametrize("make", [decorated, WithConfig, WithAttributes])
def test_chaining_wins_over_the_task_and_the_task_over_the_configuration(embedded: App, make: Any) -> None:
    embedded.configure(
        default_queue="from-configuration",
        default_max_attempts=6,
        default_timeout=77,
        default_retry_delay=66,
        default_visibility_timeout=55,
        default_retry_strategy="exponential",
    )
    message = message_of(make().timeout(1))
    assert message.timeout == 1
    assert (message.max_attempts, message.retry_delay, message.visibility_timeout) == (2, 3, 40)
    assert message.retry_strategy == "exponential"


@pytest.mark.behaviour(11)
def test_a_class_takes_its_options_from_a_task_config_or_a_dictionary_and_hands_them_down(embedded: App) -> None:
    class Base(SyncTask[None]):
        config: TaskConfig = {"queue": "base", "max_attempts": 4}

        def execute(self) -> None: ...

    class Child(Base):
        config = TaskConfig(max_attempts=5)

    class Grandchild(Child):
        timeout = 3  # type: ignore[assignment]

    assert message_of(Base()).queue == "base"
    assert (message_of(Child()).queue, message_of(Child()).max_attempts) == ("base", 5)
    last = message_of(Grandchild())
    assert (last.queue, last.max_attempts, last.timeout) == ("base", 5, 3)
    assert message_of(Base()).timeout is None


@pytest.mark.behaviour(11)
def test_options_are_readable_as_items_and_as_attributes() -> None:
    config: Any = TaskConfig(queue="images", max_attempts=5)
    assert (config["queue"], config.queue, config.max_attempts) == ("images", "images", 5)
    assert WithConfig.config["queue"] == "configured"
    with pytest.raises(AttributeError, match="'timeout' is not set"):
        _ = config.timeout


@pytest.mark.behaviour(11)
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_attempt": 5}, TypeError, "Wrong: unknown option 'max_attempt'.*did you mean 'max_attempts'"),
        ({"max_attempts": 0}, ValueError, "Wrong: max_attempts must be positive"),
        ({"timeout": "5"}, ValueError, "Wrong: timeout must be a number of seconds, not str"),
    ],
)
def test_wrong_options_of_a_class_are_named_where_it_is_defined(
    options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):

        class Wrong(SyncTask[None]):
            config = options

            def execute(self) -> None: ...


@pytest.mark.behaviour(5)
@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("default_queue", "other", "queue"),
        ("default_max_attempts", 9, "max_attempts"),
        ("default_retry_strategy", "exponential", "retry_strategy"),
        ("default_retry_delay", 12.5, "retry_delay"),
        ("default_timeout", 33, "timeout"),
        ("default_visibility_timeout", 44, "visibility_timeout"),
        ("correlation_id", "corr", "correlation_id"),
    ],
)
def test_the_configuration_s_defaults_are_taken_at_dispatch(embedded: App, key: str, value: Any, field: str) -> None:
    @task
    def work() -> None: ...

    call = work()
    before = getattr(message_of(call), field)
    embedded.configure(**{key: value})
    assert before != value
    assert getattr(message_of(call), field) == value


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("driver", ["postgres", "mysql"])
def test_a_driver_s_own_max_attempts_stand_between_the_task_s_and_the_default(alone: None, driver: str) -> None:
    @task
    def work() -> None: ...

    def attempts(call: BaseTask[Any], **options: Any) -> int:
        asynctasq.init({"driver": driver, **options})
        return message_of(call).max_attempts

    own = {f"{driver}_max_attempts": 5}
    assert attempts(work()) == 3
    assert attempts(work(), default_max_attempts=7) == 7
    assert attempts(work(), default_max_attempts=7, **own) == 5
    assert attempts(work(), **own) == 5
    assert attempts(work(), default_max_attempts=7, **{f"{driver}_max_attempts": 3}) == 3
    assert attempts(work().max_attempts(2), default_max_attempts=7, **own) == 2
    asynctasq.init({"driver": "sqlite", "default_max_attempts": 7, **own})
    assert message_of(work()).max_attempts == 7


@pytest.mark.behaviour(9)
@pytest.mark.parametrize("strategy", ["fixed", "exponential"])
def test_the_strategy_can_be_the_task_s(embedded: App, strategy: RetryStrategy) -> None:
    @task(retry_strategy=strategy)
    def work() -> None: ...

    assert message_of(work()).retry_strategy == strategy
