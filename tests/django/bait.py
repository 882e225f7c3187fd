raise AssertionError("whoever imports this follows what a message says")
