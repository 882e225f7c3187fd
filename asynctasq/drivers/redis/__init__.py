"""Redis, 6.2 or newer: a stream and a consumer group for each queue and priority.

A stream's entry carries the number of the attempt it is for. Whatever takes a message further removes its entry and
writes a new one, in one script that begins with XACK. An entry is acknowledged once, so its id is the fence, and the
receipt of a lease is the stream's name and the entry's id. The scripts are in ``lua/``, keys and arguments at the top.

Keys, all beginning with ``asynctasq:{queue}:`` so that those of one queue share a slot:

======================  =======================================================================================
``stream:<priority>``   messages pending and processing, as entries
``stream:suspects``     the same for suspects
``priorities``          sorted set of the priorities in use
``bell:<number>``       empty stream; it loses its group, which wakes all who read it, when a priority is new
``index``               hash: id -> ``<stream> <entry>``, or a word: scheduled, dead, completed, cancelled
``ids:<word>``          sorted set of ids, all of score 0, for listing; ``ids:pending`` has the processing ones too
``scheduled``           sorted set of ids by due time in us since the epoch
``task:<id>``           hash: the message, and what became of it, while it lies in no stream
======================  =======================================================================================

and ``asynctasq:queues``, the set of the queues' names.
"""

from __future__ import annotations

from asynctasq.drivers.redis.driver import RedisDriver

__all__ = ["RedisDriver"]
