"""The promise of the queue under faults: at least once, nothing lost, nothing run twice while its lease lives."""
