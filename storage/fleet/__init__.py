"""The shard stores of one store, by slot: which are usable, and which shard belongs where."""
