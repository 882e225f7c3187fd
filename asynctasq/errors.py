"""Every error this library raises, and nothing else.

::

    AsyncTasQError
    ├── ConfigurationError (ValueError)      a setting is wrong, or the broker refuses what it says
    │   └── UnknownOption (TypeError too)    a key that does not exist
    ├── NotInitialized (RuntimeError)        asynctasq.init() was not called
    ├── BrokerError
    │   ├── BrokerUnavailable (ConnectionError)   no answer within the deadline; nothing is known to be lost
    │   └── BrokerFull                       the broker has no room; try again later
    ├── DriverClosed (RuntimeError)          a call on a driver after close()
    ├── NotSupported                         this broker cannot do that, by nature
    ├── PayloadTooLarge (ValueError)         the message is larger than the broker takes
    ├── EncodeError (TypeError)              an argument or a result cannot travel
    ├── DecodeError (ValueError)             bytes from a broker that are not one of our messages
    ├── DuplicateTask (ValueError)           two tasks claim one name
    ├── UnknownTask (LookupError)            a message names a task this process does not have
    ├── TaskTimeout (TimeoutError)           an attempt ran longer than its timeout
    ├── TaskCancelled                        an attempt was cancelled from within
    ├── ProcessDied                          the child process of a process task ended under it
    └── WorkerLost                           the lease ran out: the worker died or froze
"""

from __future__ import annotations


class AsyncTasQError(Exception):
    """Root of the tree above."""


class ConfigurationError(AsyncTasQError, ValueError):
    """A setting has a wrong value, or the broker refused what the settings say."""


class UnknownOption(ConfigurationError, TypeError):
    """A configuration key that does not exist."""


class NotInitialized(AsyncTasQError, RuntimeError):
    """Something needs the configuration and ``asynctasq.init()`` was not called."""


class BrokerError(AsyncTasQError):
    """The broker did not do what was asked."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """The broker gave no answer within the deadline. The call may or may not have taken effect."""


class BrokerFull(BrokerError):
    """The broker is out of memory or disk; producers should slow down and repeat."""


class DriverClosed(AsyncTasQError, RuntimeError):
    """A driver was used before ``connect()`` or after ``close()``."""


class NotSupported(AsyncTasQError):
    """This broker cannot do that; its ``capabilities`` say so."""


class PayloadTooLarge(AsyncTasQError, ValueError):
    """The encoded message is larger than the broker takes; the text names both sizes in bytes."""


class EncodeError(AsyncTasQError, TypeError):
    """An argument or result cannot travel; the text names its path and type."""


class DecodeError(AsyncTasQError, ValueError):
    """Bytes that are not a message, or arguments that are not ours."""


class DuplicateTask(AsyncTasQError, ValueError):
    """Two different tasks were registered under one name."""


class UnknownTask(AsyncTasQError, LookupError):
    """No task of that name is registered in this process."""


class TaskTimeout(AsyncTasQError, TimeoutError):
    """An attempt ran longer than its ``timeout``."""


class TaskCancelled(AsyncTasQError):
    """An attempt ended in a cancellation that did not come from the worker."""


class ProcessDied(AsyncTasQError):
    """The child process that ran a process task ended before it answered."""


class WorkerLost(AsyncTasQError):
    """The lease of an attempt ran out without a word from its worker."""
