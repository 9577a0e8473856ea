"""A simulation of a pool, its workers, their disks, network and clock, determined by one seed.

It runs the real code from the engine and the catalog's tables to membership, layout, mending and healing
(:class:`taskworker.pool.node_pool.PoolCore`). The machines below it are simulated:

* ``disk``: a volume in memory that may lose unsynced data, rot, lie and be full;
* ``network``, ``links``, ``servers``: connections in memory between the real ends of the shard transport. Bytes arrive
  in pieces, late or never; a connection ends before, within or after a frame, or there is only silence. Nobody waits in
  a thread: whoever waits lets one thing happen after another, and time passes once nothing else can happen;
* ``frame_lies``: frames that no sound worker sends;
* ``liars``: workers whose answers may be false but are well-formed: one of them at any time, up to n - k at once, or
  all workers of one owner, while the others are well or some of them are away;
* ``copies``: catalogs that are restored from copies, or lost and rebuilt;
* ``workers``, ``pool``: processes that start, send heartbeats, stop and crash; ``clock``, ``runtime``, ``catalog``.

``operations`` and ``faults`` happen in random order, with at least 200 faults for every seed. Each is checked against
the ``model`` of what users were told and the ``invariants``, which inspect what the disks really hold. ``meanwhile``
lets the pool's other threads work during an operation. Everything takes turns, so races between the engine's threads
within one step are left to other tests.

``embedded`` simulates a store on real volumes of one machine, ``machine``, whose file system may refuse any call.
"""
