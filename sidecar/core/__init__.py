"""Pure logic: no I/O, no clock, no dice. Time and chance come in as arguments, decisions go out as values."""
