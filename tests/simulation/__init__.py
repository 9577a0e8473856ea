"""A pool, its workers, their disks, network and clock, all decided by one seed.

What runs is the real code from the engine and the catalog's tables to membership, layout, mending and
healing (:class:`taskworker.pool.node_pool.PoolCore`). Simulated are the machines below it:

* ``disk``: a volume in memory that may lose what was not synced, rot, lie and be full;
* ``network``: calls that fail before or after their effect, appends that wait in the sender's queue;
* ``liars``: workers whose every answer may be false, in the form that the protocol asks for: one of them at any
  time, up to n - k at once, or all that one owner has, while the others are well or some of them away;
* ``copies``: catalogs that are put back from copies, or lost and rebuilt;
* ``workers``, ``pool``: processes that start, beat, stop and crash; ``clock``, ``runtime``, ``catalog``.

``operations`` and ``faults`` happen in random order, at least 200 faults in every seed. Each is held against the
``model`` of what users were told and the ``invariants``, which look at what the disks really hold. ``meanwhile``
lets the pool's other threads work in the midst of an operation. Everything takes turns: races within one step of
the engine's own threads, hedging against slow workers and the bytes on the wire are left to other tests.

``embedded`` is a store on real volumes of one machine, ``machine``, whose file system may refuse any call.
"""
