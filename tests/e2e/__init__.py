"""End to end: a prepared VPS in a container, seen by its customers, its operator and a hostile bot."""
