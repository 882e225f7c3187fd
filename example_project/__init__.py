"""The example: a shop for photographic prints that sends them to the airports of the world."""
