"""How long an engine takes, beside its rivals and the machine's limits."""
